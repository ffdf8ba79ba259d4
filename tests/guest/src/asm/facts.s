# What the guest was told at its start, and the time of day.

GUEST boot_facts
    SAY "e820="
    movzx ebx, byte ptr [r15 + 0x1e8]
    mov eax, ebx
    HEX 2
    SAY " ram="
    lea rsi, [r15 + 0x2d0]
    xor eax, eax
2:  sub ebx, 1
    jc 4f
    cmp dword ptr [rsi + 16], 1
    jne 3f
    add rax, [rsi + 8]
3:  add rsi, 20
    jmp 2b
4:  HEX 16
    NEWLINE
    SAY "cmdline="
    mov esi, [r15 + 0x228]
    test esi, esi
    jz 5f
    call 91f
5:  NEWLINE
    SAY "initrd="
    mov esi, [r15 + 0x218]
    mov eax, esi
    HEX 8
    SAY " size="
    mov eax, [r15 + 0x21c]
    HEX 8
    SAY " begins="
    test eax, eax
    jz 6f
    mov rax, [rsi]
    bswap rax
    HEX 16
6:  NEWLINE
    SAY "rsdp="
    mov rsi, [r15 + 0x70]
    mov rax, rsi
    HEX 8
    test rsi, rsi
    jz 7f
    mov rax, 0x2052545020445352     # "RSD PTR "
    cmp rax, [rsi]
    jne 7f
    SAY " found"
7:  NEWLINE
    DONE
END_GUEST boot_facts

# Reads the CMOS byte `index` and prints it in hex: BCD reads as it should.
.macro CMOS index
    mov al, \index
    out 0x70, al
    in al, 0x71
    HEX 2
.endm

GUEST time
    SAY "rtc="
    mov al, 0x0d
    out 0x70, al
    in al, 0x71
    cmp al, 0xff
    jne 2f
    SAY "absent"
    NEWLINE
    DONE
2:  # Until the update bit is clear: on a clock that answers at once, one read.
    mov al, 0x0a
    out 0x70, al
    in al, 0x71
    test al, 0x80
    jnz 2b
    CMOS 0x32
    CMOS 9
    CHAR 0x2d
    CMOS 8
    CHAR 0x2d
    CMOS 7
    CHAR 0x20
    CMOS 4
    CHAR 0x3a
    CMOS 2
    CHAR 0x3a
    CMOS 0
    SAY " b="
    CMOS 0x0b
    NEWLINE
    DONE
END_GUEST time

# Entered by PVH: 32-bit, no paging, ebx = hvm_start_info. Speaks for itself, the routines are 64-bit code. A text
# stands behind the call that prints it: no rip-relative addresses in 32 bits.
    .balign 16
    .globl tiny_guest_pvh
tiny_guest_pvh:
    .quad tiny_guest_pvh_end - tiny_guest_pvh - 8
    .code32
    mov esp, offset STACK
    cld
    call 6f
    .asciz "magic="
    mov edi, [ebx]
    call 8f
    call 6f
    .asciz " entries="
    mov edi, [ebx + 48]
    call 8f
    call 6f
    .asciz " modules="
    mov edi, [ebx + 12]
    call 8f
    call 6f
    .asciz " rsdp="
    mov edi, [ebx + 32]
    call 8f
    call 6f
    .asciz "\ncmdline="
    mov esi, [ebx + 24]
    test esi, esi
    jz 2f
    call 5f
2:  call 6f
    .asciz "\ndone\n"
    mov edx, 0x600
    mov al, 0x20 | (5 << 2)
    out dx, al
3:  cli
    hlt
    jmp 3b
6:  pop esi                         # prints the text behind the call and goes on behind the text
    call 5f
    jmp esi
4:  out dx, al
5:  mov edx, offset COM1            # prints the text at esi
    lodsb
    test al, al
    jnz 4b
    ret
8:  mov edx, offset COM1            # prints edi
    mov ecx, 8
9:  rol edi, 4
    mov eax, edi
    and al, 15
    add al, 0x30
    cmp al, 0x3a
    jb 7f
    add al, 0x27
7:  out dx, al
    loop 9b
    ret
    .code64
tiny_guest_pvh_end:
