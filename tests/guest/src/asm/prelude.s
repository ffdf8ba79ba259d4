# What the guests share. Everything is position independent: a guest is a slice of bytes that runs wherever it is put.
# Routines cannot be shared between guests, so END_GUEST puts them behind each one, under the numeric labels 91 to 96;
# macros use labels from 71 on, guests those up to 69. (Labels of the digits 0 and 1 alone read as binary numbers.)
#
# Ring 0 may be emulated instruction by instruction: no `int n`, SSE, fences, popcnt, cmpxchg16b, xgetbv, rdtscp.
# Registers by convention: r15 = boot_params, r14 = VARS; macros and routines keep all others but those they name.

.section .rodata.tiny_guest, "a", @progbits

.set COM1, 0x3f8
.set UNCLAIMED, 0x5f0       # a port that no device has
.set IDT, 0x200000          # 4 KiB
.set VARS, 0x201000         # variables; the first 16 bytes are zero at the start
.set PAGES, 0x202000        # page directories for addresses above 4 GiB
.set STACK, 0x240000        # grows down
.set TRAMPOLINE, 0x10000    # where application processors start; vector 0x10
.set LOCAL_APIC, 0xfee00000
.set IOAPIC, 0xfec00000
.set ECAM, 0xe0000000

# Begins a guest: a symbol, the length of the code, the code.
.macro GUEST name
    .balign 16
    .globl tiny_guest_\name
tiny_guest_\name:
    .quad tiny_guest_\name\()_end - tiny_guest_\name - 8
    mov esp, offset STACK
    mov r15, rsi
    mov r14d, offset VARS
    mov qword ptr [r14], 0      # a machine that was reset may have kept its memory
    mov qword ptr [r14 + 8], 0
.endm

# Ends a guest with its copy of the routines.
.macro END_GUEST name
91: # Prints the zero-terminated text at rsi.
    push rax
    push rdx
    push rsi
    cld
    mov edx, offset COM1
    jmp 82f
81: out dx, al
82: lodsb
    test al, al
    jnz 81b
    pop rsi
    pop rdx
    pop rax
    ret
92: # Prints the low cl hex digits of rax.
    push rax
    push rcx
    push rdx
    push rsi
    movzx esi, cl
    mov rdx, rax
83: dec esi
    lea ecx, [rsi * 4]
    mov rax, rdx
    shr rax, cl
    and al, 15
    add al, 0x30
    cmp al, 0x3a
    jb 84f
    add al, 0x27
84: call 93f
    test esi, esi
    jnz 83b
    pop rsi
    pop rdx
    pop rcx
    pop rax
    ret
93: # Prints al.
    push rdx
    mov edx, offset COM1
    out dx, al
    pop rdx
    ret
94: # Powers off: SLP_EN, SLP_TYP 5 (ACPI 6.5 4.8.3.7). Does not return.
    mov edx, 0x600
    mov al, 0x20 | (5 << 2)
    out dx, al
    jmp 86f
95: # Resets. Does not return.
    mov edx, 0x602
    mov al, 1
    out dx, al
86: cli
    hlt
    jmp 86b
96: # Makes gate edi of the IDT an interrupt gate to rsi.
    push rax
    push rdi
    shl edi, 4
    add edi, offset IDT
    mov rax, rsi
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], cs
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov word ptr [rdi + 6], ax
    shr rax, 16
    mov qword ptr [rdi + 8], rax
    pop rdi
    pop rax
    ret
tiny_guest_\name\()_end:
.endm

# Prints a text.
.macro SAY text
    push rsi
    lea rsi, [rip + 71f]
    call 91f
    pop rsi
    jmp 72f
71: .asciz "\text"
72:
.endm

# Prints the low `digits` hex digits of rax.
.macro HEX digits
    push rcx
    mov cl, \digits
    call 92f
    pop rcx
.endm

# Prints one character.
.macro CHAR code
    push rax
    mov al, \code
    call 93f
    pop rax
.endm

.macro NEWLINE
    CHAR 10
.endm

# The last words of a guest that did what it should. Does not return.
.macro DONE
    SAY "done"
    NEWLINE
    jmp 94f
.endm

# Loads the IDT; GATE fills it before or after.
.macro LOAD_IDT
    sub rsp, 16
    mov word ptr [rsp + 6], 0xfff
    mov qword ptr [rsp + 8], offset IDT
    lidt [rsp + 6]
    add rsp, 16
.endm

.macro GATE vector, handler
    push rsi
    push rdi
    lea rsi, [rip + \handler]
    mov edi, \vector
    call 96f
    pop rdi
    pop rsi
.endm

# Enables the local APIC, by memory, and masks LINT0: after reset it lets the 8259 pair through, which nobody has set up
# and which would deliver each I/O APIC interrupt a second time. rcx = its address; clobbers rax, rdx.
.macro ENABLE_XAPIC
    mov ecx, 0x1b
    rdmsr
    or eax, 0x800
    wrmsr
    mov ecx, offset LOCAL_APIC
    mov dword ptr [rcx + 0xf0], 0x1ff
    mov dword ptr [rcx + 0x350], 0x10000
.endm

# The same by MSR: clobbers rax, rcx, rdx.
.macro ENABLE_X2APIC
    mov ecx, 0x1b
    rdmsr
    or eax, 0xc00
    wrmsr
    mov ecx, 0x80f
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    mov ecx, 0x835
    mov eax, 0x10000
    wrmsr
.endm

.macro EOI
    push rcx
    mov ecx, offset LOCAL_APIC
    mov dword ptr [rcx + 0xb0], 0
    pop rcx
.endm

# I/O APIC pin -> vector on CPU 0, edge-triggered: clobbers rcx.
.macro IOAPIC_PIN pin, vector
    mov ecx, offset IOAPIC
    mov dword ptr [rcx], 0x11 + 2 * \pin
    mov dword ptr [rcx + 0x10], 0
    mov dword ptr [rcx], 0x10 + 2 * \pin
    mov dword ptr [rcx + 0x10], \vector
.endm

# Halts until an interrupt handler has counted VARS+0 up; returns with interrupts off.
.macro WAIT_INTERRUPT
73: cli
    cmp dword ptr [r14], 0
    jne 74f
    sti
    hlt
    jmp 73b
74:
.endm

# An interrupt handler that counts VARS+0 up.
.macro COUNTING_HANDLER
    inc dword ptr [r14]
    EOI
    iretq
.endm

# Maps the 2 MiB page with the address rdi, between 4 and 512 GiB, one to one. One page directory serves: all addresses
# that a guest maps lie in one GiB, or it maps the next when it is done with the last. Clobbers rax, rcx.
.macro MAP_2M
    mov rax, cr3
    and rax, -4096
    mov rcx, [rax]
    and rcx, -4096
    mov rax, rdi
    shr rax, 30
    mov qword ptr [rcx + rax * 8], offset PAGES + 3
    mov rax, rdi
    shr rax, 21
    and eax, 511
    mov rcx, rdi
    and rcx, -0x200000
    or rcx, 0x9b            # present, writable, 2 MiB, uncached
    mov [PAGES + rax * 8], rcx
    invlpg [rdi]
.endm
