//! The last words of a console, for people: what a guest says must not draw on the terminal that they come out on.

use crate::machine::ends::PANIC_LINE;

/// How much of the line of a panic: it is a sentence, and a guest can write longer ones.
pub(super) const PANIC_TAIL: usize = 256;

/// The last `most` bytes, or a little less, of what was said, as it can be printed. Where the kernel has panicked before
/// that, the panic's line comes first: the trace that follows it can be longer, and does not say why.
pub(super) fn last_bytes(said: &[u8], most: usize) -> String {
    let text = printable(said);
    let cut = text.len().saturating_sub(most);
    // Not within a character.
    let cut = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    from(&text, cut)
}

/// The end of a line that Linux says on every machine without the registers of a PC's old PCI bus: it looks for those first, and learns only
/// afterwards from ACPI (MCFG) where its buses are. With `quiet` it is the only line of a healthy guest, and reads like the cause of its end.
const NORMAL_LINE: &str = "PCI: Fatal: No config space access function found";

/// The same of its last `most` lines that say something, and of these alone.
pub(super) fn last_lines(said: &[u8], most: usize) -> String {
    let text = printable(said);
    let says = |line: &&str| !line.trim().is_empty() && !line.trim_end().ends_with(NORMAL_LINE);
    let lines: Vec<&str> = text.lines().filter(says).collect();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let old = lines.len().saturating_sub(most);
    let cut = lines.iter().take(old).map(|line| line.len() + 1).sum();
    from(&text, cut)
}

/// `text` from `cut` on, behind the line of a panic that is not seen there whole.
fn from(text: &str, cut: usize) -> String {
    let last = text.get(cut..).unwrap_or_default();
    let panic = text.lines().rfind(|line| line.contains(PANIC_LINE));
    match panic.filter(|_| !last.contains(PANIC_LINE)) {
        Some(line) => line.chars().take(PANIC_TAIL).chain("\n...\n".chars()).chain(last.chars()).collect(),
        None => last.to_owned(),
    }
}

/// What of it is text: tabs and the ends of lines, of which CR LF is one, and no other control character, neither ESC nor
/// one of those beyond ASCII.
fn printable(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.chars().filter(|c| matches!(c, '\t' | '\n') || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_left_out() {
        let said = b"one\r\n\ttwo\x1b[2J\x1b]0;title\x07\xc2\x9bthree\x7f\x00\x08 \xff \xe2\x82\xac\r\n";
        assert_eq!(printable(said), "one\n\ttwo[2J]0;titlethree \u{fffd} €\n");
        assert_eq!(last_bytes(said, 9), " \u{fffd} €\n");
        // Within the sign of the euro.
        assert_eq!(last_bytes(said, 3), "\n");
        assert_eq!(last_lines(said, 1), "\ttwo[2J]0;titlethree \u{fffd} €\n");
    }

    #[test]
    fn last_lines_are_those_that_say_something_and_the_panic_before_them() {
        assert_eq!(last_lines(b"", 3), "");
        assert_eq!(last_lines(b"\r\n \n", 3), "");
        let mut said = b"one\n\n\nKernel panic - not syncing: of fear\r\ntwo\r\n \r\nthree".to_vec();
        assert_eq!(last_lines(&said, 3), "Kernel panic - not syncing: of fear\ntwo\nthree\n");
        assert_eq!(last_lines(&said, 2), "Kernel panic - not syncing: of fear\n...\ntwo\nthree\n");
        said.extend(b"\nKernel panic - not syncing: again");
        assert_eq!(last_lines(&said, 1), "Kernel panic - not syncing: again\n");
        assert_eq!(last_lines(&said, 9).lines().count(), 5);
    }

    #[test]
    fn line_that_every_healthy_guest_says_is_not_quoted() {
        let normal = "[    0.136718] PCI: Fatal: No config space access function found\r\n";
        assert_eq!(last_lines(normal.as_bytes(), 3), "");
        let said = format!("one\r\n{normal}two\r\nPCI: Fatal: another\r\n");
        assert_eq!(last_lines(said.as_bytes(), 3), "one\ntwo\nPCI: Fatal: another\n");
    }
}
