//! Devices in a file: each is a text as on the command line, or a table; one alone, or a list.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A device. Its own `Deserialize` reads the table.
pub(super) trait Device: FromStr<Err: fmt::Display> + for<'de> Deserialize<'de> {
    /// An example of the text, for messages.
    const EXAMPLE: &'static str;
}

/// A text, or a list of texts that are joined by a space.
pub(super) fn joined<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Joined;

    impl<'de> Visitor<'de> for Joined {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text, or a list of texts")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut texts: Vec<String> = Vec::new();
            while let Some(text) = list.next_element()? {
                texts.push(text);
            }
            Ok(Some(texts.join(" ")))
        }
    }

    deserializer.deserialize_any(Joined)
}

/// One device or a list, each a text or a table.
pub(super) fn devices<'de, D: Deserializer<'de>, T: Device>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Many(PhantomData))
}

struct Many<T>(PhantomData<T>);

struct One<T>(T);

impl<'de, T: Device> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut one = deserializer.deserialize_any(OneVisitor(PhantomData))?;
        one.pop().map(One).ok_or_else(|| de::Error::custom("no device"))
    }
}

/// Returns a list of exactly one, so that both visitors share their code.
struct OneVisitor<T>(PhantomData<T>);

fn from_text<T: Device, E: de::Error>(text: &str) -> Result<Vec<T>, E> {
    text.parse().map(|device| vec![device]).map_err(E::custom)
}

fn from_table<'de, T: Device, A: MapAccess<'de>>(map: A) -> Result<Vec<T>, A::Error> {
    Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
}

impl<'de, T: Device> Visitor<'de> for OneVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text such as \"{}\", or a table", T::EXAMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        from_text(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
        from_table(map)
    }
}

impl<'de, T: Device> Visitor<'de> for Many<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text such as \"{}\", a table, or a list of these", T::EXAMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        from_text(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
        from_table(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut devices = Vec::new();
        while let Some(One(device)) = list.next_element()? {
            devices.push(device);
        }
        Ok(devices)
    }
}

/// [`by_text_as`] for what needs no description.
macro_rules! by_text {
    ($($kind:ty),*) => {
        $crate::spec::text::by_text_as! { $($kind, "a string";)* }
    };
}
pub(super) use by_text;

/// Implements `Deserialize` and `Serialize` of a small value by its text. What has another type is told what is expected.
macro_rules! by_text_as {
    ($($kind:ty, $expected:literal;)*) => {$(
        impl serde::Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl serde::de::Visitor<'_> for Text {
                    type Value = $kind;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$kind, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    )*};
}
pub(super) use by_text_as;
