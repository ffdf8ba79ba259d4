# From the 64-bit entry to ring 3, where even a host that emulates ring 0 runs instructions natively. Interrupts stay
# off but while ring 3 waits for one. It asks for a port's access, and to wait, by `ud2`; any other exception finds no
# gate, and its triple fault ends the machine.

.section .start, "ax"
.globl _start
_start:
    mov rsp, 0x300000           # ring 0's stack; ring 3's is below 0x380000
    mov rax, cr4
    or eax, 0x600               # OSFXSR, OSXMMEXCPT: the compiler uses SSE
    mov cr4, rax
    mov rax, cr0
    and eax, ~4
    or eax, 2
    mov cr0, rax
    mov r12, rsi                # boot_params
    call map_memory
    mov cr3, rax
    lgdt [rip + gdt_pointer]
    lea rax, [rip + tss]        # the descriptor wants the address in pieces
    mov word ptr [rip + gdt + 42], ax
    shr rax, 16
    mov byte ptr [rip + gdt + 44], al
    mov byte ptr [rip + gdt + 47], ah
    mov eax, 0x28
    ltr ax
    lea rax, [rip + port_call]
    lea rdi, [rip + idt + 6 * 16]
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov word ptr [rdi + 6], ax
    lea rax, [rip + interrupt]
    lea rdi, [rip + idt + 0x41 * 16]
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov word ptr [rdi + 6], ax
    lidt [rip + idt_pointer]
    mov rdi, r12
    push 0x1b                   # ss, rsp, flags, cs, rip of ring 3
    push 0x37fff8
    push 2
    push 0x23
    lea rax, [rip + ring3]
    push rax
    iretq

port_call:                      # rdi = port, rsi = byte to write; or, if negative, read it into rax
    test rdi, rdi               # negative: halt until an interrupt comes, or not at all if one is there
    js 3f
    push rdx
    mov edx, edi
    test rsi, rsi
    js 1f
    push rax
    mov eax, esi
    out dx, al
    pop rax
    jmp 2f
1:  xor eax, eax
    in al, dx
2:  pop rdx
    add qword ptr [rsp], 2      # behind the ud2
    iretq
3:  sti
    hlt
    cli
    add qword ptr [rsp], 2
    iretq

interrupt:                      # of the first queue of any device: counted, and its end told to the local APIC
    push rax
    inc qword ptr [rip + interrupts]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq

.balign 8
.globl interrupts
interrupts:
    .quad 0

.balign 16
gdt:
    .quad 0
    .quad 0x00af9a000000ffff    # 0x08: ring 0 code
    .quad 0x00cf92000000ffff    # 0x10: ring 0 data
    .quad 0x00cff2000000ffff    # 0x18: ring 3 data
    .quad 0x00affa000000ffff    # 0x20: ring 3 code
    .quad 0x0000890000000067, 0 # 0x28: the TSS
gdt_pointer:
    .word . - gdt - 1
    .quad gdt
.balign 16
tss:                            # only where ring 0's stack is
    .long 0
    .quad 0x300000
    .fill 92, 1, 0
.balign 16
idt:
    .fill 16 * 0x42, 1, 0
idt_pointer:
    .word 16 * 0x42 - 1
    .quad idt
.text

# What compiled code calls and no library gives here.
.globl memcpy, memset, rust_eh_personality
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
rust_eh_personality:            # panics abort
    ud2
