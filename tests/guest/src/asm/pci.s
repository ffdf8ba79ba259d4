# PCI through ECAM alone: MSI-X, and junk for everything.

# Looks for an MSI-X capability, ends the guest with `no msix` where there is none, and enables memory decoding and bus
# mastering: rsi = the function's configuration space, rax = the capability's offset in it, r9 = the BAR of the table,
# r8 = the table's offset in the BAR. Clobbers rcx, rdx, rdi, rbx. Device expected: its table BAR is a memory BAR that is
# assigned an address below 512 GiB, within one 2 MiB page; a 32-bit write of n to offset 0 of it triggers vector n - 1.
.macro MSIX_FUNCTION
    xor ebx, ebx                    # device and function
2:  mov esi, ebx
    shl esi, 12
    add esi, offset ECAM
    cmp word ptr [rsi], -1
    je 5f
    test byte ptr [rsi + 6], 0x10   # status: has a capability list
    jz 5f
    movzx edi, byte ptr [rsi + 0x34]
    mov ecx, 48                     # a list that turns in circles ends, too
3:  and edi, 0xfc
    jz 5f
    cmp byte ptr [rsi + rdi], 0x11
    je 4f
    movzx edi, byte ptr [rsi + rdi + 1]
    loop 3b
5:  inc ebx
    cmp ebx, 256
    jb 2b
    SAY "no msix"
    NEWLINE
    DONE
4:  SAY "msix device="
    mov eax, ebx
    shr eax, 3
    HEX 2
    SAY " function="
    mov eax, ebx
    and eax, 7
    HEX 1
    mov r8d, [rsi + rdi + 4]        # table offset and BAR index
    mov eax, r8d
    and eax, 7
    SAY " bir="
    HEX 1
    NEWLINE
    mov r9d, [rsi + rax * 4 + 0x10]
    mov ecx, r9d
    and ecx, 6
    cmp ecx, 4
    jne 8f
    mov ecx, [rsi + rax * 4 + 0x14]
    shl rcx, 32
    or r9, rcx
8:  and r9, -16
    and r8d, -8
    mov edx, edi
    mov rdi, r9
    mov rax, r9
    shr rax, 32
    jz 9f
    MAP_2M
9:  mov eax, edx
    mov dx, [rsi + 4]               # memory decoding, bus mastering
    or dx, 6
    mov [rsi + 4], dx
.endm

# Gives vector `index` a message to this CPU; `control` 1 masks it.
.macro MSIX_ENTRY index, data, control
    mov dword ptr [r9 + r8 + 16 * \index], offset LOCAL_APIC
    mov dword ptr [r9 + r8 + 16 * \index + 4], 0
    mov dword ptr [r9 + r8 + 16 * \index + 8], \data
    mov dword ptr [r9 + r8 + 16 * \index + 12], \control
.endm

# Message control of the capability at rdi: 0x8000 enables, 0xc000 masks the whole function. Clobbers rdx.
.macro MSIX_CONTROL bits
    mov dx, [rsi + rdi + 2]
    and dx, 0x3fff
    or dx, \bits
    mov [rsi + rdi + 2], dx
.endm

GUEST msix
    GATE 0x40, 6f
    LOAD_IDT
    ENABLE_XAPIC
    MSIX_FUNCTION
    mov edi, eax
    MSIX_ENTRY 0, 0x40, 0
    MSIX_CONTROL 0x8000
    mov dword ptr [r9], 1
    WAIT_INTERRUPT
    SAY "interrupt"
    NEWLINE
    DONE
6:  COUNTING_HANDLER
END_GUEST msix

# Prints how often each of two vectors came, and the first eight pending bits.
.macro REPORT_VECTORS
    mov eax, [r14 + 4]
    HEX 1
    SAY " second="
    mov eax, [r14 + 8]
    HEX 1
    SAY " pending="
    mov edx, [rsi + rdi + 8]
    and edx, -8
    movzx eax, byte ptr [r9 + rdx]
    HEX 2
    NEWLINE
    mov dword ptr [r14], 0
.endm

GUEST msix_masks
    GATE 0x40, 6f
    GATE 0x41, 69f
    LOAD_IDT
    ENABLE_XAPIC
    MSIX_FUNCTION
    mov edi, eax
    MSIX_ENTRY 0, 0x40, 1
    MSIX_ENTRY 1, 0x41, 0
    MSIX_CONTROL 0x8000
    mov dword ptr [r9], 1
    mov dword ptr [r9], 2
    WAIT_INTERRUPT
    SAY "masked: first="
    REPORT_VECTORS
    mov dword ptr [r9 + r8 + 12], 0
    WAIT_INTERRUPT
    SAY "open: first="
    REPORT_VECTORS
    MSIX_CONTROL 0xc000
    mov dword ptr [r9], 2
    SAY "function masked: first="
    REPORT_VECTORS
    MSIX_CONTROL 0x8000
    WAIT_INTERRUPT
    SAY "function open: first="
    REPORT_VECTORS
    DONE
6:  inc dword ptr [r14 + 4]
    COUNTING_HANDLER
69: inc dword ptr [r14 + 8]
    COUNTING_HANDLER
END_GUEST msix_masks

# Junk for every port in every width but for those that end the machine (0x505, 0x600 to 0x602) and COM1's data port;
# for every byte of every memory BAR, and of configuration space; reads in between. COM1 is put in order before the
# report.
GUEST junk
    GATE 2, 69f                     # a junk message may be an NMI
    LOAD_IDT
    mov r12d, 0x2545f491            # seed
    xor r13d, r13d                  # functions, BARs << 16
    xor ebx, ebx                    # port
2:  mov edx, ebx
    in al, dx
    mov ecx, 1
    call 63f
    jc 3f
    call 61f
    out dx, al
3:  mov ecx, 2
    call 63f
    jc 4f
    call 61f
    out dx, ax
4:  mov ecx, 4
    call 63f
    jc 5f
    call 61f
    out dx, eax
5:  test bl, 7                      # the wider reads at every eighth port
    jnz 9f
    in ax, dx
    in eax, dx
9:  inc ebx
    cmp ebx, 0x10000
    jb 2b

    xor ebx, ebx                    # device and function
6:  mov esi, ebx
    shl esi, 12
    add esi, offset ECAM
    mov ax, [rsi]                   # absent: all ones, or zero behind a device of one function
    dec ax
    cmp ax, -2
    jae 56f
    inc r13d
    mov word ptr [rsi + 4], 6       # memory decoding, bus mastering
    mov r8d, 0x10                   # BAR
7:  call 65f
    cmp r8d, 0x28
    jb 7b
    mov r9d, esi
    mov r11d, 4096
    call 60f
    jmp 8f
56: call 61f                        # nobody is there to be harmed
    mov [rsi + 4], rax
8:  inc ebx
    cmp ebx, 256
    jb 6b

    mov edx, offset COM1 + 3        # 8N1, no interrupt, no loopback
    mov al, 3
    out dx, al
    mov edx, offset COM1 + 1
    xor eax, eax
    out dx, al
    mov edx, offset COM1 + 4
    mov al, 0x0b
    out dx, al
    NEWLINE
    SAY "junk functions="
    movzx eax, r13w
    HEX 4
    SAY " bars="
    mov eax, r13d
    shr eax, 16
    HEX 4
    NEWLINE
    DONE

65: # The BAR at rsi + r8: sizes it, fills it with junk, moves r8 to the next.
    mov r9d, [rsi + r8]
    mov dword ptr [rsi + r8], -1
    mov r11d, [rsi + r8]
    mov [rsi + r8], r9d
    add r8d, 4
    test r11d, r11d
    jz 67f                          # none
    test r9d, 1
    jnz 67f                         # ports: done already
    mov ecx, r9d
    and ecx, 6
    and r9d, -16
    and r11d, -16
    neg r11d
    cmp ecx, 4
    jne 66f
    mov ecx, [rsi + r8]
    add r8d, 4
    shl rcx, 32
    or r9, rcx
66: test r9, r9
    jz 67f                          # no address
    test r11d, r11d
    jz 67f                          # 4 GiB or more
    add r13d, 0x10000
    mov rdi, r9
    mov rax, r9
    shr rax, 32
    jz 68f
    MAP_2M                          # large enough: what follows stays within 16 KiB
68: mov r10d, 0x4000
    cmp r11, r10
    cmova r11, r10
    call 60f
67: ret

60: # Writes junk in all widths, aligned, to the r11 bytes at r9.
    xor r10d, r10d
57: call 61f
    mov byte ptr [r9 + r10], al
    test r10d, 1
    jnz 58f
    mov word ptr [r9 + r10], ax
    test r10d, 3
    jnz 58f
    mov dword ptr [r9 + r10], eax
    test r10d, 7
    jnz 58f
    mov qword ptr [r9 + r10], rax
    mov rax, [r9 + r10]
58: inc r10
    cmp r10, r11
    jb 57b
    ret

61: # The next pseudo-random number, in rax (a linear congruence; the high half is the better one).
    mov rax, 6364136223846793005
    imul r12, rax
    add r12, 1442695
    mov rax, r12
    rol rax, 32
    ret

63: # Carry if ports edx..edx+ecx must be left alone.
    cmp edx, 0xcf9
    je 62f
    cmp edx, 0x610
    ja 64f
    cmp edx, 0x64
    je 62f
    lea eax, [rdx + rcx]            # past the end
    cmp eax, 0x3f9
    jb 64f
    cmp edx, 0x3f8
    jbe 62f
    cmp eax, 0x506
    jb 64f
    cmp edx, 0x505
    jbe 62f
    cmp eax, 0x601
    jb 64f
    cmp edx, 0x602
    jbe 62f
64: clc
    ret
62: stc
    ret

69: iretq
END_GUEST junk
