//! Standard input at a console: what is typed, and the escape key's menu, Ctrl-] and a letter.

use std::io::{self, Read};

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;

/// What a key in the menu asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    PowerButton,
    Reset,
    Quit,
    Detach,
    Help,
    /// A letter that is not in the menu.
    Unknown,
}

/// Lines that `?` shows where the machine runs.
pub(super) const HELP: &[&str] = &[
    "Ctrl-] then: p  press the power button",
    "             r  reset the machine",
    "             q  quit at once",
    "             ?  this help",
    "        Ctrl-]  send Ctrl-] to the guest",
];

/// Lines that `?` shows at the console of a machine that runs elsewhere.
pub(super) const ATTACHED_HELP: &[&str] = &[
    "Ctrl-] then: d  detach; the machine runs on",
    "             p  press the power button",
    "             r  reset the machine",
    "             ?  this help",
    "        Ctrl-]  send Ctrl-] to the guest",
];

/// What typed bytes turn out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed<'a> {
    /// For the guest.
    Text(&'a [u8]),
    /// For the menu.
    Choice(Choice),
}

/// Tells the guest's input from the menu's keys, also where a read ends between the two.
#[derive(Debug, Default)]
struct Menu {
    escaped: bool,
}

impl Menu {
    /// Takes the next thing off the front of `bytes`; `None` when nothing is left.
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Typed<'a>> {
        loop {
            let (&key, rest) = bytes.split_first()?;
            if self.escaped {
                self.escaped = false;
                let (text, _) = bytes.split_at(1);
                *bytes = rest;
                return Some(match key {
                    ESCAPE => Typed::Text(text),
                    b'p' => Typed::Choice(Choice::PowerButton),
                    b'r' => Typed::Choice(Choice::Reset),
                    b'q' => Typed::Choice(Choice::Quit),
                    b'd' => Typed::Choice(Choice::Detach),
                    b'?' | b'h' => Typed::Choice(Choice::Help),
                    _ => Typed::Choice(Choice::Unknown),
                });
            }
            if key == ESCAPE {
                self.escaped = true;
                *bytes = rest;
                continue;
            }
            let len = bytes.iter().position(|&byte| byte == ESCAPE).unwrap_or(bytes.len());
            let (text, rest) = bytes.split_at(len);
            *bytes = rest;
            return Some(Typed::Text(text));
        }
    }
}

/// Reads input to its end, or until `take` has enough of it. Only a terminal has the menu: a pipe's bytes are all the
/// guest's.
pub(super) fn read_input(
    input: &mut impl Read,
    menu: bool,
    mut take: impl FnMut(Typed<'_>) -> io::Result<()>,
) {
    let mut menu = menu.then(Menu::default);
    let mut bytes = [0; 4096];
    loop {
        let mut rest = match input.read(&mut bytes) {
            Ok(0) => return,
            Ok(n) => bytes.get(..n).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        while let Some(typed) = next(&mut menu, &mut rest) {
            if take(typed).is_err() {
                return;
            }
        }
    }
}

fn next<'a>(menu: &mut Option<Menu>, rest: &mut &'a [u8]) -> Option<Typed<'a>> {
    match menu {
        Some(menu) => menu.next(rest),
        None => (!rest.is_empty()).then(|| Typed::Text(std::mem::take(rest))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest gets and what was chosen, from reads of the given pieces.
    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Choice>) {
        let (mut menu, mut text, mut choices) = (Menu::default(), Vec::new(), Vec::new());
        for mut piece in pieces.iter().copied() {
            while let Some(typed) = menu.next(&mut piece) {
                match typed {
                    Typed::Text(bytes) => text.extend_from_slice(bytes),
                    Typed::Choice(choice) => choices.push(choice),
                }
            }
        }
        (text, choices)
    }

    #[test]
    fn text_goes_to_the_guest_and_keys_to_the_menu() {
        assert_eq!(
            typed(&[b"ls\r\x1dpx\x1dq\x1dd"]),
            (b"ls\rx".to_vec(), vec![Choice::PowerButton, Choice::Quit, Choice::Detach])
        );
    }

    #[test]
    fn an_escape_at_the_end_of_a_read_waits_for_its_key() {
        assert_eq!(typed(&[b"a\x1d", b"rb"]), (b"ab".to_vec(), vec![Choice::Reset]));
    }

    #[test]
    fn the_escape_key_twice_is_one_for_the_guest() {
        assert_eq!(typed(&[b"\x1d\x1d\x1d?"]), (vec![ESCAPE], vec![Choice::Help]));
    }

    #[test]
    fn other_keys_after_the_escape_are_said_to_be_unknown() {
        assert_eq!(typed(&[b"\x1dz"]), (vec![], vec![Choice::Unknown]));
    }
}
