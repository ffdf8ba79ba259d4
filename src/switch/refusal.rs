//! Why a request is refused.

/// A status of HTTP, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(super) status: u16,
    pub(super) sentence: String,
}

impl Refusal {
    pub(super) fn new(status: u16, sentence: impl Into<String>) -> Self {
        Refusal { status, sentence: sentence.into() }
    }

    pub(super) fn ended() -> Self {
        Refusal::new(503, "the switch ends; start it again")
    }
}
