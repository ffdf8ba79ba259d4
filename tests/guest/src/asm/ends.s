# The ways a machine stops.

GUEST reset
    SAY "resetting"
    NEWLINE
    jmp 95f
END_GUEST reset

GUEST triple_fault
    SAY "faulting"
    NEWLINE
    sub rsp, 16
    mov word ptr [rsp + 6], 0
    mov qword ptr [rsp + 8], 0
    lidt [rsp + 6]
    ud2
END_GUEST triple_fault

GUEST halt
    SAY "halting"
    NEWLINE
2:  cli
    hlt
    jmp 2b
END_GUEST halt

GUEST busy
    SAY "spinning"
    NEWLINE
2:  jmp 2b
END_GUEST busy

GUEST pvpanic
    SAY "panicking"
    NEWLINE
    mov edx, 0x505
    mov al, 1
    out dx, al
    SAY "survived"
    NEWLINE
2:  cli
    hlt
    jmp 2b
END_GUEST pvpanic

GUEST kernel_panic
    SAY "Kernel panic - not syncing: test"
    NEWLINE
    jmp 95f
END_GUEST kernel_panic

GUEST obedient
    SAY "ready"
    NEWLINE
2:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 2b
    mov edx, offset COM1
    in al, dx
    cmp al, 0x72                # r
    je 95f
    cmp al, 0x6b                # k
    je 3f
    cmp al, 0x71                # q
    jne 2b
    DONE
3:  SAY "Kernel panic - not syncing: test"
    NEWLINE
    jmp 95f
END_GUEST obedient

GUEST linux_ends
    SAY "ready"
    NEWLINE
2:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 2b
    mov edx, offset COM1
    in al, dx
    cmp al, 0x73                # s
    je 3f
    cmp al, 0x74                # t
    je 4f
    cmp al, 0x68                # h
    je 5f
    cmp al, 0x6b                # k
    je 6f
    cmp al, 0x70                # p
    je 7f
    cmp al, 0x77                # w
    je 12f
    cmp al, 0x71                # q
    jne 2b
    DONE
12: SAY "Kernel panic - not syncing: test"
    NEWLINE
    SAY "Rebooting in 600 seconds.."
    NEWLINE
    jmp 9f
3:  SAY "Kernel panic - not syncing: test"
    NEWLINE
    SAY "---[ end Kernel panic - not syncing: test ]---"
    NEWLINE
    jmp 9f
4:  SAY "reboot: Restarting system"
    NEWLINE
    sub rsp, 16
    mov word ptr [rsp + 6], 0
    mov qword ptr [rsp + 8], 0
    lidt [rsp + 6]
    ud2
5:  SAY "reboot: System halted"
    NEWLINE
8:  cli
    hlt
    jmp 8b
6:  SAY "keyboard controller"
    NEWLINE
    mov al, 0xfe
    out 0x64, al
    jmp 9f
7:  SAY "chipset"
    NEWLINE
    mov edx, 0xcf9
    mov al, 2
    out dx, al
    mov al, 6
    out dx, al
9:  jmp 9b
END_GUEST linux_ends

GUEST old_panic
    GATE 0x29, 6f
    LOAD_IDT
    ENABLE_XAPIC
    IOAPIC_PIN 9, 0x29
    SAY "Kernel panic - not syncing: old"
    NEWLINE
    SAY "---[ end Kernel panic - not syncing: old ]---"
    NEWLINE
    WAIT_INTERRUPT
    DONE
6:  COUNTING_HANDLER
END_GUEST old_panic

GUEST mute
    jmp 95f
END_GUEST mute
