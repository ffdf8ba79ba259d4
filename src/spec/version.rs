//! The version of the format that a machine is described in.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Version of the format of a written [`Spec`](super::Spec). A description without a version is of the current one.
///
/// A description of another version is refused, because its keys may mean something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SpecVersion(u32);

impl SpecVersion {
    /// The version that this crate reads and writes.
    pub const CURRENT: SpecVersion = SpecVersion(1);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for SpecVersion {
    fn default() -> Self {
        Self::CURRENT
    }
}

impl TryFrom<u32> for SpecVersion {
    type Error = SpecError;

    fn try_from(number: u32) -> Result<Self, SpecError> {
        if number == Self::CURRENT.0 { Ok(Self::CURRENT) } else { Err(SpecError::Version { found: number }) }
    }
}

impl From<SpecVersion> for u32 {
    fn from(version: SpecVersion) -> u32 {
        version.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::Spec;

    #[test]
    fn written_spec_names_its_version_and_needs_none() {
        let spec = Spec::new("k");
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(text, r#"{"version":1,"kernel":"k"}"#);
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert_eq!(serde_json::from_str::<Spec>(r#"{"kernel":"k"}"#).unwrap(), spec);
    }

    #[test]
    fn other_versions_are_refused_with_a_sentence() {
        for number in [0, 2, u32::MAX] {
            let error = serde_json::from_str::<Spec>(&format!(r#"{{"version":{number}}}"#)).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains(&format!("version {number} ")) && said.contains("reads version 1"),
                "{said}"
            );
        }
    }
}
