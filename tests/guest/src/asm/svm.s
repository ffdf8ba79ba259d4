# A guest that has a guest of its own, by SVM (AMD64 Architecture Programmer's Manual vol. 2, chapter 15 and appendix B).

.set HSAVE, 0x210000        # what the processor keeps of this guest while the inner one runs
.set VMCB, 0x211000
.set COUNTER, VARS + 16     # what the inner guest counts up

.macro SEGMENT at, attributes
    mov word ptr [VMCB + 0x400 + \at], 8
    mov word ptr [VMCB + 0x402 + \at], \attributes
    mov dword ptr [VMCB + 0x404 + \at], -1
.endm

GUEST svm
    mov eax, 0x80000001
    cpuid
    test ecx, 4
    jnz 2f
    SAY "no svm"
    NEWLINE
    DONE
2:  GATE 0x24, 6f
    LOAD_IDT
    ENABLE_XAPIC
    IOAPIC_PIN 4, 0x24
    mov edx, offset COM1 + 4    # OUT2 lets the interrupt out, RTS and DTR
    mov al, 0x0b
    out dx, al
    mov edx, offset COM1 + 1    # data received
    mov al, 1
    out dx, al
    mov ecx, 0xc0000080         # EFER.SVME
    rdmsr
    or eax, 0x1000
    wrmsr
    mov [r14 + 24], eax
    mov ecx, 0xc0010117         # VM_HSAVE_PA
    mov eax, offset HSAVE
    xor edx, edx
    wrmsr
    cld
    mov edi, offset VMCB
    mov ecx, 4096
    xor eax, eax
    rep stosb
    mov qword ptr [COUNTER], 0
    mov dword ptr [VMCB + 0x0c], 0x81000001 # leaves it for an interrupt, HLT, shutdown
    mov dword ptr [VMCB + 0x10], 1          # and for VMRUN, which is required
    mov dword ptr [VMCB + 0x58], 1          # ASID
    mov dword ptr [VMCB + 0x60], 0x1000000  # V_INTR_MASKING: this guest's IF lets interrupts in
    SEGMENT 0x00, 0xc93
    SEGMENT 0x10, 0xa9b
    SEGMENT 0x20, 0xc93
    SEGMENT 0x30, 0xc93
    mov eax, [r14 + 24]
    mov [VMCB + 0x4d0], eax
    mov rax, cr4
    mov [VMCB + 0x548], rax
    mov rax, cr3
    mov [VMCB + 0x550], rax
    mov rax, cr0
    mov [VMCB + 0x558], rax
    mov dword ptr [VMCB + 0x560], 0x400
    mov eax, 0xffff0ff0
    mov [VMCB + 0x568], rax
    mov dword ptr [VMCB + 0x570], 2
    lea rax, [rip + 5f]
    mov [VMCB + 0x578], rax
    mov dword ptr [VMCB + 0x5d8], offset STACK - 0x8000
    SAY "ready"
    NEWLINE
3:  mov eax, offset VMCB
    clgi
    sti
    vmrun rax
    stgi                        # here the interrupt comes for which it was left
    nop
    cli
    mov rax, [VMCB + 0x70]
    cmp eax, 0x60               # VMEXIT_INTR
    jne 4f
    cmp dword ptr [r14 + 12], 0
    je 2f
    mov dword ptr [r14 + 12], 0
    SAY "ounted="
    mov rax, [COUNTER]
    HEX 16
    NEWLINE
2:  cmp dword ptr [r14], 0
    je 3b
    NEWLINE
    SAY "echoed="
    mov eax, [r14 + 4]
    HEX 8
    NEWLINE
    DONE
4:  SAY "left for "
    HEX 8
    NEWLINE
    DONE
5:  inc qword ptr [COUNTER]     # the inner guest
    pause
    jmp 5b
6:  push rax
    push rdx
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
    cmp al, 0x63
    jne 7b
    inc dword ptr [r14 + 12]
    jmp 7b
8:  inc dword ptr [r14]
9:  EOI
    pop rdx
    pop rax
    iretq
END_GUEST svm
