# COM1's input. End of input is 0x04 (Ctrl-D), which no pasted text contains.

GUEST echo_polled
    SAY "ready"
    NEWLINE
    xor ebx, ebx
2:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 2b
    mov edx, offset COM1
    in al, dx
    cmp al, 4
    je 3f
    out dx, al
    inc ebx
    jmp 2b
3:  NEWLINE
    SAY "echoed="
    mov eax, ebx
    HEX 8
    NEWLINE
    DONE
END_GUEST echo_polled

GUEST echo_interrupt
    GATE 0x24, 6f
    LOAD_IDT
    ENABLE_XAPIC
    IOAPIC_PIN 4, 0x24
    mov edx, offset COM1 + 4    # OUT2 lets the interrupt out, RTS and DTR
    mov al, 0x0b
    out dx, al
    mov edx, offset COM1 + 1    # data received
    mov al, 1
    out dx, al
    SAY "ready"
    NEWLINE
    WAIT_INTERRUPT
    NEWLINE
    SAY "echoed="
    mov eax, [r14 + 4]
    HEX 8
    SAY " interrupts="
    mov eax, [r14 + 8]
    HEX 8
    NEWLINE
    DONE
6:  # Takes what there is; VARS+0 says that the end was seen.
    push rax
    push rdx
    inc dword ptr [r14 + 8]
    mov edx, offset COM1 + 2
    in al, dx
7:  mov edx, offset COM1 + 5
    in al, dx
    test al, 1
    jz 9f
    mov edx, offset COM1
    in al, dx
    cmp al, 4
    je 8f
    out dx, al
    inc dword ptr [r14 + 4]
    jmp 7b
8:  inc dword ptr [r14]
9:  EOI
    pop rdx
    pop rax
    iretq
END_GUEST echo_interrupt

GUEST flood
    # A line of text in the variables: eight digits that count, dots, a newline.
    cld
    lea rdi, [r14 + 64]
    mov ecx, 63
    mov al, 0x2e
    rep stosb
    mov byte ptr [r14 + 64 + 63], 10
    xor ebx, ebx
2:  mov eax, ebx
    lea rdi, [r14 + 64]
    mov ecx, 8
3:  rol eax, 4
    mov edx, eax
    and edx, 15
    add edx, 0x30
    cmp edx, 0x3a
    jb 4f
    add edx, 0x27
4:  mov [rdi], dl
    inc rdi
    loop 3b
    lea rsi, [r14 + 64]
    mov ecx, 64
    mov edx, offset COM1
    rep outsb
    inc ebx
    cmp ebx, 4096
    jb 2b
    DONE
END_GUEST flood
