use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;

use super::*;

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("minivmm");
    (outer, folder)
}

fn names(folder: &Path) -> Vec<String> {
    all_in(folder).iter().map(|machine| machine.name.to_string()).collect()
}

#[test]
fn a_name_is_one_machines_and_its_files_are_its_users_alone() {
    let (_outer, folder) = folder();
    let claim = Claim::take_in(&folder, &name("vm0")).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(claim.path()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(folder.join("vm0.lock")).unwrap().mode() & 0o777, 0o600);
    let error = Claim::take_in(&folder, &name("vm0")).unwrap_err();
    let own = std::process::id();
    assert!(error.to_string().contains(&format!("vm0 runs already, as process {own};")), "{error}");
    UnixStream::connect(claim.path()).unwrap();
    let other = Claim::take_in(&folder, &name("vm1")).unwrap();
    assert_eq!(names(&folder), ["vm0", "vm1"]);
    assert_eq!(find_in(&folder, &name("vm1")).unwrap().pid, Some(own));
    drop((claim, other));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert!(find_in(&folder, &name("vm0")).is_none());
}

#[test]
fn what_a_dead_machine_left_is_removed_by_the_next_and_by_a_look_around() {
    let (_outer, folder) = folder();
    prepare(&folder).unwrap();
    let leave = |lock: bool| {
        drop(UnixListener::bind(folder.join("vm0.sock")).unwrap());
        if lock {
            fs::write(folder.join("vm0.lock"), "1\n").unwrap();
        }
    };
    for lock in [true, false] {
        leave(lock);
        assert!(find_in(&folder, &name("vm0")).is_none());
        assert!(names(&folder).is_empty());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        leave(lock);
        let claim = Claim::take_in(&folder, &name("vm0")).unwrap();
        UnixStream::connect(claim.path()).unwrap();
    }
}

#[test]
fn a_name_of_a_machine_that_was_killed_just_now_is_had_when_the_kernel_lets_go_of_it() {
    let (_outer, folder) = folder();
    prepare(&folder).unwrap();
    let mut killed = Command::new("sleep").arg("60").spawn().unwrap();
    killed.kill().unwrap();
    // Its files are closed last; this file stands for them.
    let path = folder.join("vm0.lock");
    fs::write(&path, format!("{}\n", killed.id())).unwrap();
    let lock = File::options().write(true).open(&path).unwrap();
    assert!(try_lock(&lock, Kind::Exclusive).unwrap());
    thread::scope(|scope| {
        let taken = scope.spawn(|| Claim::take_in(&folder, &name("vm0")));
        // Longer than is waited for what nobody has.
        thread::sleep(2 * MOMENT);
        killed.wait().unwrap();
        drop(lock);
        taken.join().unwrap().unwrap();
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (_outer, folder) = folder();
    prepare(&folder).unwrap();
    fs::write(folder.join("vm0.sock"), "precious").unwrap();
    fs::write(folder.join("notes.txt"), "precious").unwrap();
    assert!(matches!(Claim::take_in(&folder, &name("vm0")), Err(ClaimError::Host { .. })));
    assert!(names(&folder).is_empty());
    assert!(folder.join("vm0.sock").exists() && folder.join("notes.txt").exists());
}

#[test]
fn a_folder_that_others_can_enter_is_refused() {
    let (outer, folder) = folder();
    prepare(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let error = Claim::take_in(&folder, &name("vm0")).unwrap_err();
    assert!(matches!(error, ClaimError::Shared { .. }) && error.to_string().contains("chmod 700"));
    let link = outer.path().join("link");
    std::os::unix::fs::symlink(outer.path(), &link).unwrap();
    assert!(matches!(Claim::take_in(&link, &name("vm0")), Err(ClaimError::Shared { .. })));
    let nowhere = outer.path().join("no/such");
    assert!(matches!(Claim::take_in(&nowhere, &name("vm0")), Err(ClaimError::Folder { .. })));
}

#[test]
fn of_many_who_want_a_name_at_once_one_has_it_at_a_time() {
    let (_outer, folder) = folder();
    let living = std::sync::atomic::AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    if let Ok(_claim) = Claim::take_in(&folder, &name("vm0")) {
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(living.fetch_add(1, SeqCst), 0);
                        living.fetch_sub(1, SeqCst);
                    }
                    all_in(&folder);
                }
            });
        }
    });
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_name_outlives_its_folder_and_has_its_files_again_when_there_is_a_place() {
    let (outer, folder) = folder();
    let session = outer.path().join("session");
    fs::create_dir(&session).unwrap();
    let folder = session.join(folder.file_name().unwrap());
    let mut claim = Claim::take_in(&folder, &name("vm0")).unwrap();
    assert!(!claim.renew().unwrap());
    // As logind does at logout.
    fs::remove_dir_all(&session).unwrap();
    assert!(claim.renew().is_err());
    assert_eq!(names(&folder), ["vm0"]);
    let found = find_in(&folder, &name("vm0")).unwrap();
    assert!(found.pid == Some(std::process::id()) && !found.has_socket());
    // As logind does at the next login.
    fs::create_dir(&session).unwrap();
    let taken = Claim::take_in(&folder, &name("vm0")).unwrap_err();
    assert!(matches!(taken, ClaimError::Taken { .. }), "{taken}");
    assert!(claim.renew().unwrap());
    UnixStream::connect(claim.path()).unwrap();
    assert!(find_in(&folder, &name("vm0")).unwrap().has_socket());
    // As programs do that clean a folder.
    for file in ["vm0.sock", "vm0.lock"] {
        fs::remove_file(folder.join(file)).unwrap();
        assert_eq!(names(&folder), ["vm0"]);
        assert!(claim.renew().unwrap());
        UnixStream::connect(claim.path()).unwrap();
        assert!(is_locked(&File::open(folder.join("vm0.lock")).unwrap()).unwrap());
    }
    assert!(!claim.renew().unwrap());
    // A folder that other users can enter is not used.
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(claim.renew(), Err(ClaimError::Shared { .. })));
    fs::write(folder.join("vm0.lock"), "another process's").unwrap();
    drop(claim);
    assert!(folder.join("vm0.lock").exists());
    assert!(find_in(&folder, &name("vm0")).is_none());
}

#[test]
fn a_path_that_no_socket_can_have_is_refused_with_its_limit() {
    let (outer, _) = folder();
    let long = outer.path().join("x".repeat(120 - outer.path().as_os_str().len()));
    let error = Claim::take_in(&long, &name("vm0")).unwrap_err().to_string();
    assert!(
        error.contains("130 bytes") && error.contains("107") && error.contains("XDG_RUNTIME_DIR"),
        "{error}"
    );
}
