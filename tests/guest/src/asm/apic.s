# Interrupts and further CPUs.

GUEST timer_wake
    GATE 0x30, 6f
    LOAD_IDT
    ENABLE_XAPIC
    mov dword ptr [rcx + 0x3e0], 0xb    # divide by 1
    mov dword ptr [rcx + 0x320], 0x30   # one shot
    mov dword ptr [rcx + 0x380], 100000
    WAIT_INTERRUPT
    SAY "woke"
    NEWLINE
    DONE
6:  COUNTING_HANDLER
END_GUEST timer_wake

GUEST slow_timer
    GATE 0x30, 6f
    LOAD_IDT
    ENABLE_XAPIC
    mov dword ptr [rcx + 0x3e0], 0xa        # divide by 128
    mov dword ptr [rcx + 0x320], 0x30       # one shot
    mov dword ptr [rcx + 0x380], 8000000    # a second, where the APIC's clock has a gigahertz
    SAY "armed"
    NEWLINE
    WAIT_INTERRUPT
    SAY "woke"
    NEWLINE
    DONE
6:  COUNTING_HANDLER
END_GUEST slow_timer

GUEST power_button
    GATE 0x29, 6f
    LOAD_IDT
    ENABLE_XAPIC
    IOAPIC_PIN 9, 0x29
    SAY "ready"
    NEWLINE
    WAIT_INTERRUPT
    SAY "button"
    NEWLINE
    DONE
6:  COUNTING_HANDLER
END_GUEST power_button

# What an application processor does: counts itself and stops. Real mode, at TRAMPOLINE; the count lies at its +0x800.
.macro TRAMPOLINE_CODE
    .code16
    mov ax, cs
    mov ds, ax
    lock inc dword ptr [0x800]
75: cli
    hlt
    jmp 75b
    .code64
.endm

# Copies the code between labels 6 and 7 to TRAMPOLINE.
.macro PLACE_TRAMPOLINE
    cld
    lea rsi, [rip + 6f]
    mov edi, offset TRAMPOLINE
    lea rcx, [rip + 7f]
    sub rcx, rsi
    rep movsb
    mov dword ptr [TRAMPOLINE + 0x800], 0
.endm

# Waits until as many have come as the command line's `cpus=N` says (one digit or more, decimal; N counts the first
# CPU), without one until nobody has come for 400 million ticks of the TSC. Then reports and powers off.
.macro REPORT_APS
    mov esi, [r15 + 0x228]
    test esi, esi
    jz 23f
21: cmp dword ptr [rsi], 0x73757063     # "cpus"
    je 22f
    cmp byte ptr [rsi], 0
    je 23f
    inc rsi
    jmp 21b
22: xor ebx, ebx
    add rsi, 5
24: movzx eax, byte ptr [rsi]
    sub eax, 0x30
    cmp eax, 9
    ja 25f
    imul ebx, ebx, 10
    add ebx, eax
    inc rsi
    jmp 24b
25: dec ebx
26: pause
    cmp dword ptr [TRAMPOLINE + 0x800], ebx
    jb 26b
    jmp 29f
23: mov ebx, [TRAMPOLINE + 0x800]
    rdtsc
    mov edi, eax
27: pause
    cmp dword ptr [TRAMPOLINE + 0x800], ebx
    jne 23b
    rdtsc
    sub eax, edi
    cmp eax, 400000000
    jb 27b
29: SAY "aps="
    mov eax, [TRAMPOLINE + 0x800]
    HEX 4
    NEWLINE
    DONE
.endm

GUEST smp
    PLACE_TRAMPOLINE
    ENABLE_XAPIC
    # INIT, then start-up, to all but this one (Intel SDM 3A 11.6.1).
    mov dword ptr [rcx + 0x310], 0
    mov dword ptr [rcx + 0x300], 0xc4500
    mov dword ptr [rcx + 0x300], 0xc4600 | (TRAMPOLINE >> 12)
    REPORT_APS
6:  TRAMPOLINE_CODE
7:
END_GUEST smp

GUEST smp_x2apic
    PLACE_TRAMPOLINE
    ENABLE_X2APIC
    mov ecx, 0x830
    xor edx, edx
    mov eax, 0xc4500
    wrmsr
    mov eax, 0xc4600 | (TRAMPOLINE >> 12)
    wrmsr
    REPORT_APS
6:  TRAMPOLINE_CODE
7:
END_GUEST smp_x2apic

GUEST smp_later
    PLACE_TRAMPOLINE
    ENABLE_XAPIC
    mov dword ptr [rcx + 0x310], 0
    mov dword ptr [rcx + 0x300], 0xc4500
    SAY "ready"
    NEWLINE
    mov edx, offset COM1 + 5
2:  in al, dx
    test al, 1
    jz 2b
    mov edx, offset COM1
    in al, dx
    mov ecx, offset LOCAL_APIC
    mov dword ptr [rcx + 0x300], 0xc4600 | (TRAMPOLINE >> 12)
    REPORT_APS
6:  TRAMPOLINE_CODE
7:
END_GUEST smp_later
