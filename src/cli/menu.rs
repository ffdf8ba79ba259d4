//! Standard input at a console: the guest's input, and the menu of the escape key, Ctrl-] and a letter.

use std::io::{self, Read};

/// Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;

/// A key of the menu.
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

/// The help of `?` where the machine runs.
pub(super) const HELP: &[&str] = &[
    "Ctrl-] then: p  press the power button",
    "             r  reset the machine",
    "             q  quit at once",
    "             ?  this help",
    "        Ctrl-]  send Ctrl-] to the guest",
];

/// The help of `?` in `minivmm console`.
pub(super) const ATTACHED_HELP: &[&str] = &[
    "Ctrl-] then: d  detach; the machine runs on",
    "             p  press the power button",
    "             r  reset the machine",
    "             ?  this help",
    "        Ctrl-]  send Ctrl-] to the guest",
];

/// A piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed<'a> {
    /// For the guest.
    Text(&'a [u8]),
    /// For the menu.
    Choice(Choice),
}

/// Separates the guest's input from the menu's keys, also across reads.
#[derive(Debug, Default)]
struct Menu {
    escaped: bool,
}

impl Menu {
    /// Takes the next piece from the front of `bytes`; `None` when nothing is left.
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

/// Reads input to its end, or until `take` fails. Only a terminal has the menu: all bytes of a pipe are the
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

    /// The guest's input and the menu's keys in these pieces.
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
