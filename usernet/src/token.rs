//! Names of host sockets: which table, which slot, and which use of the slot, so that a late event of a closed socket is
//! recognised.

/// The table that a socket is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// TCP connections.
    Tcp = 1,
    /// Flows of UDP.
    Udp = 2,
    /// Echo sockets.
    Ping = 3,
    /// Forwards, of both protocols.
    Forward = 4,
}

/// Bits of a token: 8 of kind, 24 of generation, 32 of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// The table.
    pub(crate) kind: Kind,
    /// The use of the slot, modulo 2^24.
    pub(crate) generation: u32,
    /// The slot.
    pub(crate) slot: u32,
}

impl Token {
    /// As the host carries it.
    pub(crate) fn to_bits(self) -> u64 {
        (u64::from(self.kind as u8) << 56)
            | (u64::from(self.generation & 0xff_ffff) << 32)
            | u64::from(self.slot)
    }

    /// From what the host carried.
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out")]
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        let kind = match bits >> 56 {
            1 => Kind::Tcp,
            2 => Kind::Udp,
            3 => Kind::Ping,
            4 => Kind::Forward,
            _ => return None,
        };
        Some(Token { kind, generation: (bits >> 32) as u32 & 0xff_ffff, slot: bits as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_its_bits() {
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Forward] {
            let token = Token { kind, generation: 0xab_cdef, slot: u32::MAX };
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        assert_eq!(Token::from_bits(0), None);
    }
}
