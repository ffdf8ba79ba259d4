//! `minivmm disk info`.

use std::path::Path;

use diskimage::{Access, Format, Header, Image, Layer, Opener};
use serde_json::{Value, json};

use super::error::{DiskVerbError, shown};
use super::size::Bytes;
use super::source::{Source, begins_like};
use super::users::User;
use super::{DiskInfoArgs, format_of};
use crate::host::disk_image::{Busy, ImageOpener};
use crate::image::printable;

pub(super) fn info(args: &DiskInfoArgs) -> Result<String, DiskVerbError> {
    let mut opener = ImageOpener::for_a_look();
    let layers = if args.chain {
        let options = Source::new(&args.file, &args.source).options();
        let image = Image::open(&args.file, &options, &mut opener)?;
        image.layers().to_vec()
    } else {
        let file = opener.open(&args.file, Access::named(false))?;
        vec![Layer::read(&file, &args.file, format_of(args.source.format, &args.file))?]
    };
    let like = opener.open_disk(&args.file, false).ok().and_then(|file| begins_like(&file));
    let like = like.filter(|_| layers.first().is_some_and(|layer| layer.format == Format::Raw));
    let layers: Vec<_> = layers.iter().map(|layer| (layer, users(&layer.path, opener.busy()))).collect();
    if args.json {
        let mut all = layers.iter().map(|(layer, users)| as_json(layer, users));
        let value = if args.chain { Value::Array(all.collect()) } else { all.next().unwrap_or_default() };
        return Ok(serde_json::to_string_pretty(&value)?);
    }
    let mut texts: Vec<_> = layers.iter().map(|(layer, users)| facts(layer, users)).collect();
    if let (Some(like), Some(top)) = (like, texts.first_mut()) {
        *top += &format!("\nnote      it begins like {like}; if it is one, say so with `--format`");
    }
    Ok(texts.join("\n\n"))
}

/// The users of the file at `path`.
fn users(path: &Path, busy: &[Busy]) -> Vec<User> {
    busy.iter().filter(|busy| busy.path == path).map(|busy| User::of(busy.holder.as_ref())).collect()
}

/// A line for each fact.
fn facts(layer: &Layer, users: &[User]) -> String {
    let mut rows = vec![
        ("image", shown(&layer.path)),
        ("format", layer.header.as_ref().map_or_else(|| layer.format.to_string(), format)),
        ("size", format!("{} ({} bytes)", Bytes(layer.size), layer.size)),
        ("on host", Bytes(layer.used).to_string()),
    ];
    if let Some(header) = &layer.header {
        if let Some(backing) = &header.backing {
            let format = backing.format.as_deref().map(|format| format!(" ({})", printable(format)));
            rows.push(("backing", format!("{}{}", shown(&backing.name), format.unwrap_or_default())));
        }
        if header.snapshots > 0 {
            rows.push(("snapshots", header.snapshots.to_string()));
        }
        rows.extend(remarks(header).into_iter().map(|remark| ("note", remark)));
        if let Err(error) = header.check_supported(&layer.path) {
            rows.push(("note", error.to_string()));
        }
    }
    rows.extend(users.iter().map(|user| ("in use", format!("by {user}"))));
    let lines: Vec<_> = rows.iter().map(|(name, value)| format!("{name:<9} {value}")).collect();
    lines.join("\n")
}

fn format(header: &Header) -> String {
    format!("qcow2 (version {}, clusters of {})", header.version, Bytes(header.cluster_size()))
}

/// What is worth a line of its own, beside what is not supported.
fn remarks(header: &Header) -> Vec<String> {
    let features = &header.features;
    let known = [
        (features.lazy_refcounts, "its reference counts are written late (lazy_refcounts)"),
        (features.bitmaps, "it has dirty bitmaps"),
    ];
    known.into_iter().filter(|(has, _)| *has).map(|(_, text)| text.to_owned()).collect()
}

/// The same for programs. Names that an image has are as they are, which JSON makes harmless.
fn as_json(layer: &Layer, users: &[User]) -> Value {
    let mut value = json!({
        "path": layer.path.to_string_lossy(),
        "format": layer.format.name(),
        "size": layer.size,
        "used": layer.used,
        "users": users.iter().map(user_json).collect::<Vec<_>>(),
    });
    let (Some(fields), Some(header)) = (value.as_object_mut(), &layer.header) else { return value };
    let refused = header.check_supported(&layer.path).err().map(|error| error.to_string());
    let backing = header.backing.as_ref();
    let backing =
        backing.map(|backing| json!({ "path": backing.name.to_string_lossy(), "format": backing.format }));
    let more = [
        ("version", json!(header.version)),
        ("cluster-size", json!(header.cluster_size())),
        ("backing", json!(backing)),
        ("snapshots", json!(header.snapshots)),
        ("dirty", json!(header.features.dirty)),
        ("corrupt", json!(header.features.corrupt)),
        ("lazy-refcounts", json!(header.features.lazy_refcounts)),
        ("refcount-bits", json!(header.refcount_bits)),
        ("compression", json!(header.compression)),
        ("encryption", json!(header.encryption)),
        ("refused", json!(refused)),
    ];
    fields.extend(more.map(|(key, value)| (key.to_owned(), value)));
    value
}

fn user_json(user: &User) -> Value {
    match user {
        User::Machine(machine) => json!({ "machine": machine.name.as_str(), "pid": machine.pid }),
        User::Process(holder) => json!({ "command": holder.command, "pid": holder.pid }),
        User::Unknown => json!({}),
    }
}

/// The line for an image that was just written.
pub(super) fn in_a_line(path: &Path, format: Format, size: u64, used: u64) -> String {
    format!("{}: {}, {format}, {} of them in use on the host", shown(path), Bytes(size), Bytes(used))
}
