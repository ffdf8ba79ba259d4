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
