//! Any bytes on the control socket, in pieces of any size: every answer is one of ours, and there are no more than requests.
//!
//! `cargo +nightly fuzz run control_request fuzz/corpus/control_request fuzz/seeds/control_request`
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The shortest request is `A / HTTP/1.0` and two line ends.
const SHORTEST: usize = 14;

/// What is said, without the asking for a body, which is spared where the body is there already.
fn said(input: &[u8], piece: usize) -> String {
    let said = minivmm::control::serve_bytes(input, piece);
    String::from_utf8(said).expect("answers are text").replace("HTTP/1.1 100 Continue\r\n\r\n", "")
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, input)) = input.split_first() else { return };
    let piece = usize::from(*piece) + 1;
    let text = said(input, piece);
    assert_eq!(text, said(input, input.len()), "it depends on the cut");
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 "), "{text}");
    // Sentences may speak of HTTP/1.1 too, but of no status.
    let answers: usize =
        ["1", "2", "4", "5"].map(|class| text.matches(&format!("HTTP/1.1 {class}")).count()).iter().sum();
    assert!(answers <= input.len() / SHORTEST + 1, "{answers} answers to {} bytes", input.len());
});
