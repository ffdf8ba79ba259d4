//! A JSON value that was tampered with.

use serde_json::Value;

/// Bytes that say what is changed.
pub const CHANGE: usize = 12;

/// The places of all values in `state`, its own first.
fn places(state: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match state {
        Value::Array(values) => {
            (0..).zip(values).for_each(|(n, value)| places(value, &format!("{at}/{n}"), all))
        }
        Value::Object(values) => {
            values.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), all))
        }
        _ => {}
    }
}

/// Changes one value in `state`, as 12 bytes say: which (two bytes), what is done to it, how far the number is shifted, the number.
pub fn change(state: &mut Value, raw: &[u8]) {
    let mut all = Vec::new();
    places(state, "", &mut all);
    let which = usize::from(u16::from_le_bytes([raw[0], raw[1]])) % all.len();
    let number =
        raw[4..].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) >> (raw[3] % 64);
    let Some(value) = state.pointer_mut(&all[which]) else { return };
    match (raw[2] % 12, &mut *value) {
        (0, _) => *value = Value::Null,
        (1, Value::Bool(old)) => *old = !*old,
        (2, _) => *value = (-1i64).into(),
        (3, _) => *value = "text".into(),
        (4, Value::Array(values)) => values.extend(values.last().cloned()),
        (5, Value::Array(values)) => drop(values.pop()),
        (6, Value::Array(values)) => values.reverse(),
        (7, Value::Object(values)) => {
            let key = values.keys().nth(number as usize % values.len().max(1)).cloned();
            key.map(|key| values.remove(&key));
        }
        (8, old) if old.is_u64() => *value = (old.as_u64().unwrap_or(0) ^ number).into(),
        (9, old) if old.is_u64() => *value = old.as_u64().unwrap_or(0).wrapping_add(number).into(),
        (10, old) if old.is_u64() => *value = old.as_u64().unwrap_or(0).wrapping_sub(number).into(),
        (_, old) if old.is_number() || old.is_null() => *value = number.into(),
        _ => {}
    }
}
