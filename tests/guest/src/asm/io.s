# Ports and memory-mapped I/O in every width.

GUEST ports
    mov edx, offset UNCLAIMED
    mov eax, 0x12345678
    out dx, al
    out dx, ax
    out dx, eax
    xor eax, eax
    in al, dx
    SAY "in8="
    HEX 2
    xor eax, eax
    in ax, dx
    SAY " in16="
    HEX 4
    xor eax, eax
    in eax, dx
    SAY " in32="
    HEX 8
    NEWLINE
    # The same with the port in the instruction; 0xe0 belongs to nobody.
    xor eax, eax
    out 0xe0, al
    out 0xe0, ax
    out 0xe0, eax
    in eax, 0xe0
    SAY "imm32="
    HEX 8
    NEWLINE
    SAY "scratch="
    mov edx, offset COM1 + 7
    mov al, 0x5a
    out dx, al
    xor eax, eax
    in al, dx
    HEX 2
    mov al, 0xa5
    out dx, al
    xor eax, eax
    in al, dx
    HEX 2
    NEWLINE
    DONE
END_GUEST ports

GUEST string_io
    cld
    lea rsi, [rip + 2f]
    lea rcx, [rip + 3f]
    sub rcx, rsi
    mov edx, offset COM1
    rep outsb
    # Backwards, too.
    lea rsi, [rip + 4f - 1]
    lea rcx, [rip + 3f - 1]
    sub rcx, rsi
    neg rcx
    std
    rep outsb
    cld
    # The scratch register, eight times.
    mov edx, offset COM1 + 7
    mov al, 0x5a
    out dx, al
    lea rdi, [r14 + 64]
    mov ecx, 8
    rep insb
    mov rax, [r14 + 64]
    SAY "insb="
    HEX 16
    NEWLINE
    # A port that is not there.
    mov edx, offset UNCLAIMED
    lea rdi, [r14 + 64]
    mov ecx, 2
    rep insb
    mov ecx, 1
    rep insw
    mov ecx, 1
    rep insd
    mov rax, [r14 + 64]
    SAY "none="
    HEX 16
    NEWLINE
    lea rsi, [r14 + 64]
    mov ecx, 2
    rep outsw
    lea rsi, [r14 + 64]
    mov ecx, 2
    rep outsd
    DONE
2:  .ascii "rep outsb says hello\n"
3:  .ascii "\nsdrawkcab dna"
4:
END_GUEST string_io

# Writes, then reads what rdi points to in each width.
.macro EACH_WIDTH
    mov rax, 0x123456789abcdef0
    mov byte ptr [rdi], al
    mov word ptr [rdi], ax
    mov dword ptr [rdi], eax
    mov qword ptr [rdi], rax
    movzx eax, byte ptr [rdi]
    SAY "8="
    HEX 2
    movzx eax, word ptr [rdi]
    SAY " 16="
    HEX 4
    mov eax, dword ptr [rdi]
    SAY " 32="
    HEX 8
    mov rax, qword ptr [rdi]
    SAY " 64="
    HEX 16
    NEWLINE
.endm

GUEST mmio
    SAY "low  "
    mov edi, 0xdff00000
    EACH_WIDTH
    SAY "high "
    mov rdi, 0x7fffe00000
    MAP_2M
    EACH_WIDTH
    SAY "ecam "
    mov edi, offset ECAM + (31 << 15)
    mov eax, [rdi]
    HEX 8
    NEWLINE
    DONE
END_GUEST mmio

GUEST high_writer
    mov rdi, 0x100005000
    MAP_2M
    xor ebx, ebx
    SAY "ready"
    NEWLINE
2:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 2b
    inc ebx
    mov [0x300000], ebx
    mov [rdi], ebx
    mov edx, offset COM1
    in al, dx
    out dx, al
    jmp 2b
END_GUEST high_writer

GUEST stopped_clock
    mov ecx, 0x4b564d01         # MSR_KVM_SYSTEM_TIME_NEW: the clock's page, in use
    mov eax, 0x300001
    xor edx, edx
    wrmsr
    SAY "ready"
    NEWLINE
2:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 2b
    mov edx, offset COM1
    in al, dx
    movzx eax, byte ptr [0x30001d]
    and byte ptr [0x30001d], 0xfd
    shr eax, 1
    and eax, 1
    HEX 1
    NEWLINE
    jmp 2b
END_GUEST stopped_clock
