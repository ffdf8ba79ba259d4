use std::fs;

use devices::component::State;

use super::*;

/// A folder with a saved machine of 1 MiB, and what was saved.
fn saved() -> (tempfile::TempDir, PathBuf, SavedState) {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("saved");
    let state = |kind, data| State::new(kind, 3, &data).unwrap();
    let states = [("vcpu0", state("vcpu", vec![1, 2])), ("rtc", state("rtc", Vec::new()))];
    let states = states.map(|(id, state)| (id.to_owned(), state));
    let state = SavedState::from_states(1, -1, states);
    let new = NewSavedMachine::create(&target).unwrap();
    new.memory().set_len(1 << 20).unwrap();
    new.keep(Spec::new("vmlinuz").with_name("vm0".parse().unwrap()), &state, Vec::new()).unwrap();
    (root, target, state)
}

fn refusal(folder: &Path) -> String {
    SavedMachine::open(folder).unwrap_err().to_string()
}

#[test]
fn machine_is_read_as_it_was_written() {
    let (_root, folder, state) = saved();
    let machine = SavedMachine::open(&folder).unwrap();
    assert_eq!(machine.state, state);
    assert_eq!(machine.spec.kernel, Some(std::env::current_dir().unwrap().join("vmlinuz")));
    assert_eq!(machine.memory.metadata().unwrap().len(), 1 << 20);
    // Its memory may be read by several, and written by none.
    SavedMachine::open(&folder).unwrap();
    let memory = File::options().write(true).open(folder.join(MEMORY)).unwrap();
    assert!(!crate::host::lock::try_lock(&memory, Kind::Exclusive).unwrap());
}

#[test]
fn each_byte_of_the_description_and_of_the_sections_may_be_wrong() {
    let (_root, folder, state) = saved();
    for name in [MANIFEST, STATE] {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            for flip in [1u8, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(&path, &bad).unwrap();
                // Words that say nothing of the state may differ.
                match SavedMachine::open(&folder) {
                    Ok(machine) => {
                        assert!(name == MANIFEST && machine.state.states().count() == state.states().count())
                    }
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains(folder.to_str().unwrap()), "{error}");
                        assert!(!error.contains(|sign: char| sign.is_control()), "{error:?}");
                    }
                }
            }
        }
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert!(refusal(&folder).contains("damaged"), "{name} of {len} bytes");
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(refusal(&folder).contains("damaged"));
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(SavedMachine::open(&folder).unwrap().state, state);
}

#[test]
fn state_that_would_take_much_more_memory_than_its_file_is_not_read() {
    let (_root, folder, _) = saved();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join(MANIFEST)).unwrap()).unwrap();
    for (text, taken) in [("[0]", true), ("{\"\":0}", false), ("0", false), ("[]", false)] {
        let count = if taken { 1 } else { 9_000_000 };
        let state = format!("[{text}{}]", format!(",{text}").repeat(count - 1));
        let mut described = manifest.clone();
        let section = &mut described["sections"][0];
        section["length"] = state.len().into();
        section["crc32"] = crc32fast::hash(state.as_bytes()).into();
        described["sections"].as_array_mut().unwrap().truncate(1);
        fs::write(folder.join(MANIFEST), described.to_string()).unwrap();
        fs::write(folder.join(STATE), state).unwrap();
        match SavedMachine::open(&folder) {
            Ok(_) => assert!(taken, "{text}"),
            Err(error) => assert!(!taken && error.to_string().contains("more values"), "{text}: {error}"),
        }
    }
}

#[test]
fn what_is_no_saved_machine_is_refused_in_a_sentence() {
    let (root, folder, _) = saved();
    assert!(refusal(root.path()).contains("holds no saved machine"));
    assert!(refusal(&root.path().join("none")).contains("holds no saved machine"));
    let replace = |name: &str, with: &str| {
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(name), "{text}");
        fs::write(&path, text.replace(name, with)).unwrap();
        let error = refusal(&folder);
        fs::write(&path, text).unwrap();
        error
    };
    assert!(replace("\"format\": 1", "\"format\": 2, \"news\": 1").contains("format 2"));
    assert!(replace("\"memory\": 1048576", "\"memory\": 1048577").contains("1048577"));
    assert!(
        replace("\"rtc\"", "\"vcpu0\"").contains("checksum")
            || replace("\"rtc\"", "\"vcpu0\"").contains("twice")
    );
    assert!(replace("\"length\": 2", "\"length\": 18446744073709551615").contains("ends in section"));
    assert!(replace("\"program\"", "\"\u{1b}[2J\"").contains("damaged"));
    fs::remove_file(folder.join(STATE)).unwrap();
    fs::write(root.path().join("elsewhere"), "{}").unwrap();
    std::os::unix::fs::symlink(root.path().join("elsewhere"), folder.join(STATE)).unwrap();
    assert!(refusal(&folder).contains("state is no regular file"));
    fs::remove_file(folder.join(STATE)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join(STATE)).unwrap();
    assert!(refusal(&folder).contains("state is no regular file"));
    File::options().write(true).open(folder.join(MANIFEST)).unwrap().set_len(MOST_MANIFEST + 1).unwrap();
    assert!(refusal(&folder).contains("longer than"));
}

#[test]
fn a_copy_of_a_disk_is_in_the_folder_under_its_own_name() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("saved");
    let new = NewSavedMachine::create(&folder).unwrap();
    let spec = Spec::new("vmlinuz").with_disk(DiskSpec::new("/vda.raw"));
    new.keep(spec, &SavedState::from_states(1, -1, []), vec![None]).unwrap();
    fs::write(root.path().join("vda.raw"), "").unwrap();
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    for (name, why) in
        [("../vda.raw", "not called vda.raw"), ("vdb.raw", "not called"), ("vda.raw", "cannot be read")]
    {
        let changed = text.replace("\"disks\": [\n    null\n  ]", &format!("\"disks\": [\"{name}\"]"));
        assert_ne!(changed, text);
        fs::write(&path, changed).unwrap();
        assert!(refusal(&folder).contains(why), "{name}: {}", refusal(&folder));
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_of_such_a_size_is_made() {
    let (_root, folder, _) = saved();
    let path = folder.join(MANIFEST);
    let good: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let most = serde_json::Value::from(u64::MAX);
    let with = |pointer: &str, value: &serde_json::Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value.clone();
        fs::write(&path, bad.to_string()).unwrap();
        SavedMachine::open(&folder)
    };
    let refused = |pointer: &str, value: serde_json::Value| {
        let error = with(pointer, &value).unwrap_err().to_string();
        assert!(error.contains(folder.to_str().unwrap()), "{pointer}: {error}");
    };
    for pointer in ["/format", "/memory", "/sections/0/length", "/sections/1/length", "/version"] {
        refused(pointer, most.clone());
        refused(pointer, (-1).into());
        refused(pointer, 1e300.into());
    }
    // Lengths whose sum is right, by an overflow.
    let mut bad = good.clone();
    let whole = fs::metadata(folder.join(STATE)).unwrap().len();
    bad["sections"][0]["length"] = (u64::MAX - 1).into();
    bad["sections"][1]["length"] = (whole + 2).into();
    fs::write(&path, bad.to_string()).unwrap();
    assert!(refusal(&folder).contains("ends in section"));
    let many: Vec<_> = (0..5000).map(|_| good["sections"][0].clone()).collect();
    refused("/sections", many.into());
    refused("/sections", serde_json::json!([]));
    refused("/disks", vec![serde_json::Value::Null; 9].into());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    fs::write(&path, good.to_string().replacen("-1", &deep, 1)).unwrap();
    assert!(refusal(&folder).contains("damaged"));
}

#[test]
fn errors_are_sentences_in_one_line() {
    let path = PathBuf::from("saved");
    for error in [
        SavedMachineError::Exists(path.clone()),
        SavedMachineError::NoDisks(path.clone()),
        SavedMachineError::DisksExist(path.clone()),
        SavedMachineError::NoPlaceForWrites(path.clone()),
        SavedMachineError::NotSaved(path.clone()),
        SavedMachineError::DiskChanged(path.clone()),
        SavedMachineError::NoCopy { folder: path.clone(), disk: path.clone() },
        SavedMachineError::Damaged { folder: path.clone(), reason: "it is".into() },
    ] {
        let said = error.to_string();
        assert!(!said.contains("  ") && !said.contains('\n') && said.contains([';', ':']), "{said}");
        assert!(!said.contains("rm -r"), "{said}");
    }
}

#[test]
fn a_folder_that_exists_is_not_touched() {
    let (_root, folder, state) = saved();
    let error = NewSavedMachine::create(&folder).unwrap_err().to_string();
    assert!(error.contains("exists"), "{error}");
    // It may have come while the machine was written.
    let other = folder.with_file_name("other");
    let new = NewSavedMachine::create(&other).unwrap();
    assert!(NewSavedMachine::create(&other).unwrap_err().to_string().contains("another process"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("mine"), "mine").unwrap();
    assert!(new.keep(Spec::default(), &state, Vec::new()).unwrap_err().to_string().contains("exists"));
    assert_eq!(fs::read(other.join("mine")).unwrap(), b"mine");
    assert!(!folder.with_file_name(".other.part").exists());
}
