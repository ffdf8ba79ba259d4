//! A [`Spec`] in a TOML file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::places::{Node, key_before};
use super::{ShareOrigin, Spec, SpecError, SpecVersion};
use crate::shown;

impl Spec {
    /// Reads a machine from a TOML file. Relative paths in it count from its folder.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("vm.toml");
    /// std::fs::write(&path, "kernel = 'vmlinuz'\ninitrd = 'initrd.img'\nmem = '2G'\non-reboot = 'exit'\n")?;
    /// let spec = minivmm::spec::Spec::from_file(&path)?;
    /// assert_eq!(spec.kernel, Some(folder.path().join("vmlinuz")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SpecError::Unreadable`] and [`SpecError::Wrong`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, SpecError> {
        let path = path.as_ref();
        let text =
            text_of(path).map_err(|source| SpecError::Unreadable { path: path.to_path_buf(), source })?;
        let wrong = |error| wrong(path, &text, &error);
        // The version comes first: keys of another one need not be known here.
        let _: SpecVersion = toml::from_str::<Version>(&text).map_err(wrong)?.version;
        let mut spec: Spec = toml::from_str(&text).map_err(wrong)?;
        let places: Node = toml::from_str(&text).map_err(wrong)?;
        if let Some((at, message)) = places.mistake() {
            return Err(SpecError::Wrong { path: path.to_path_buf(), line: line(&text, at), message });
        }
        for (share, at) in spec.share.iter_mut().zip(places.devices("share")) {
            share.origin = ShareOrigin::File { path: path.to_path_buf(), line: line(&text, at) };
        }
        // A pipe has no folder: `<(...)` is /dev/fd/63.
        if let Some(folder) =
            path.parent().filter(|folder| !folder.starts_with("/dev") && !folder.starts_with("/proc"))
        {
            // Joining with an absolute path leaves that path.
            spec.paths_mut().for_each(|path| *path = folder.join(&*path));
        }
        Ok(spec)
    }

    /// This machine as the text of a TOML file.
    ///
    /// ```
    /// # use minivmm::spec::Spec;
    /// assert_eq!(Spec::new("/boot/vmlinuz").with_mem("2G".parse()?).to_toml()?, "version = 1\nkernel = \"/boot/vmlinuz\"\nmem = 2048\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`SpecError::Unwritable`] for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, SpecError> {
        toml::to_string(self).map_err(|error| SpecError::Unwritable(Box::new(error)))
    }
}

/// A machine's file without its other keys.
#[derive(serde::Deserialize)]
struct Version {
    #[serde(default)]
    version: SpecVersion,
}

/// Longest file: a machine's has some hundred bytes, and /dev/zero no end.
const LONGEST: u64 = 1 << 20;

/// The text of a file, or of a pipe that is being written.
fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is longer than 1 MiB, and is no machine's file",
        ));
    }
    Ok(text)
}

fn wrong(path: &Path, text: &str, error: &toml::de::Error) -> SpecError {
    let start = error.span().map_or(0, |span| span.start);
    let message = shown::text(&error.message().trim_end().replace('\n', "; "));
    // What serde says of a value does not name its key.
    let is_of_value =
        ["unknown variant", "invalid type", "invalid value"].iter().any(|kind| message.starts_with(kind));
    let message = match key_before(text, start).filter(|_| is_of_value) {
        Some(key) => format!("`{key}`: {message}"),
        None => message,
    };
    SpecError::Wrong { path: path.to_path_buf(), line: line(text, start), message }
}

/// The line of what stands at `at`, counted from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{
        ConsoleChoice, DiskFormat, DiskQueues, DiskSpec, Initrd, NetSpec, OnReboot, PortSpec, Rtc,
    };
    use super::*;

    fn read(text: &str) -> (tempfile::TempDir, Result<Spec, SpecError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.toml");
        fs::write(&path, text).unwrap();
        (folder, Spec::from_file(path))
    }

    #[test]
    fn file_without_an_end_is_refused() {
        let error = Spec::from_file("/dev/zero").unwrap_err();
        assert!(
            matches!(&error, SpecError::Unreadable { source, .. } if source.kind() == io::ErrorKind::FileTooLarge)
        );
    }

    fn mistake(text: &str) -> (usize, String) {
        match read(text).1 {
            Err(SpecError::Wrong { path, line, message }) => {
                assert!(path.ends_with("vm.toml"));
                (line, message)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn relative_paths_count_from_the_files_folder() {
        let (folder, spec) = read("kernel = 'k/vmlinuz'\ninitrd = '/boot/initrd.img'");
        let spec = spec.unwrap();
        assert_eq!(spec.kernel, Some(folder.path().join("k/vmlinuz")));
        assert_eq!(spec.initrd().unwrap(), Path::new("/boot/initrd.img"));
    }

    #[test]
    fn initrd_none_is_a_word_and_no_path() {
        assert_eq!(read("initrd = 'none'").1.unwrap().initrd, Some(Initrd::None));
    }

    #[test]
    fn every_option_survives_being_written_and_read() {
        let spec = Spec::new("/boot/vmlinuz")
            .with_initrd("/boot/initrd.img")
            .with_cmdline("console=ttyS0 \"quoted\" ö")
            .with_append("quiet")
            .with_mem("3G".parse().unwrap())
            .with_cpus("4".parse().unwrap())
            .with_rtc(Rtc::Localtime)
            .with_on_reboot(OnReboot::Exit)
            .with_balloon("64".parse().unwrap())
            .with_merge(true)
            .with_uuid("01234567-89ab-cdef-0123-456789abcdef".parse().unwrap())
            .with_console(ConsoleChoice::Hvc0)
            .with_disk(DiskSpec::new("/d/a,b.raw").with_serial("s".parse().unwrap()).direct())
            .with_disk(DiskSpec::new("/d/c.raw").read_only().with_queues(DiskQueues::new(2).unwrap()))
            .with_disk("/d/b,overlay=/d/o,format=qcow2,snapshot,backing=/d/x,backing=/d/y".parse().unwrap())
            .with_net(NetSpec::tap("tap2".parse().unwrap()))
            .with_net("user,subnet=10.1.0.0/16,forward=5555:22,mac=02:00:00:00:00:01".parse().unwrap())
            .with_net("socket=/run/a,,b,listen,mtu=9000,pcap=/p,id=lan".parse().unwrap())
            .with_net("dgram=/a:/b".parse().unwrap())
            .with_share("/d/src,tag=work,ro,cache=never,owner=xattr,locks=host".parse().unwrap())
            .with_port(PortSpec::new("agent".parse().unwrap(), "/run/agent.sock"));
        let text = spec.to_toml().unwrap();
        let keys = text.parse::<toml::Table>().unwrap();
        assert_eq!(keys.len(), 17, "an option is missing in the test or in the file:\n{text}");
        assert_eq!(read(&text).1.unwrap(), spec);
    }

    #[test]
    fn devices_are_texts_or_tables_alone_or_in_lists() {
        let disks = |text: &str| read(text).1.unwrap().disk;
        let (folder, spec) = read("disk = 'a,,b.raw,ro'");
        assert_eq!(spec.unwrap().disk, [DiskSpec::new(folder.path().join("a,b.raw")).read_only()]);
        let expected = [DiskSpec::new("/a"), DiskSpec::new("/b").read_only()];
        assert_eq!(disks("disk = ['/a', '/b,ro']"), expected);
        assert_eq!(disks("disk = ['/a', { path = '/b', ro = true }]"), expected);
        assert_eq!(disks("[[disk]]\npath = '/a'\n[[disk]]\npath = '/b'\nro = true\n"), expected);
        assert_eq!(disks("disk = { path = '/a' }"), expected[..1]);
        let (folder, spec) =
            read("disk = { path = 'b', overlay = 'o', format = 'qcow2', backing = ['x', '/y'] }");
        let at = |name: &str| folder.path().join(name);
        let overlaid = DiskSpec::new(at("b")).with_overlay(at("o")).with_format(DiskFormat::Qcow2);
        assert_eq!(spec.unwrap().disk, [overlaid.with_backing(at("x")).with_backing("/y")]);
        let (folder, spec) = read("net = 'tap=tap2'\nport = 'name=a,socket=a.sock'");
        let spec = spec.unwrap();
        assert_eq!(spec.net, ["tap=tap2".parse().unwrap()]);
        assert_eq!(spec.port, [PortSpec::new("a".parse().unwrap(), folder.path().join("a.sock"))]);
    }

    #[test]
    fn networks_are_listed_by_kind_and_the_old_key_is_still_read() {
        let nets = |text: &str| read(text).1.unwrap().net;
        let parsed =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<NetSpec>>();
        let two = parsed(&["user", "tap=tap2,mac=02:00:00:00:00:01"]);
        assert_eq!(nets("net = [{ user = {} }, { tap = 'tap2', mac = '02:00:00:00:00:01' }]"), two);
        assert_eq!(nets("[[net]]\nuser = {}\n[[net]]\ntap = 'tap2'\nmac = '02:00:00:00:00:01'\n"), two);
        let taps = parsed(&["tap=tap2", "tap=user,mac=02:00:00:00:00:01"]);
        assert_eq!(nets("tap = ['tap2', { name = 'user', mac = '02:00:00:00:00:01' }]"), taps);
        assert_eq!(nets("tap = 'tap2'\nnet = ['user']"), parsed(&["tap=tap2", "user"]));
        // Nothing is said, and there is nothing, are two things.
        assert_eq!(nets("mem = 5"), []);
        for none in ["net = []", "net = 'none'", "net = { none = {} }", "tap = []"] {
            assert_eq!(nets(none), [NetSpec::none()], "{none}");
        }
        let (folder, spec) = read("net = ['socket=a,pcap=b', 'dgram=c:/d']");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let expected = [format!("socket={},pcap={}", at("a"), at("b")), format!("dgram={}:/d", at("c"))];
        assert_eq!(spec.unwrap().net, parsed(&expected.each_ref().map(String::as_str)));
        let (line, message) = mistake("mem = 5\nnet = ['user', 'usr']\n");
        assert_eq!(line, 2);
        assert!(message.contains("`usr`") && message.contains("`tap=NAME`"), "{message}");
        let (line, message) = mistake("[[net]]\nuser = {}\nlisten = true\n");
        assert!(line <= 3 && message.contains("`listen`"), "{line} {message}");
    }

    #[test]
    fn wrong_device_is_explained_with_its_line() {
        let (line, message) = mistake("mem = 512\ndisk = ['/a', '/b,rw']\n");
        assert_eq!(line, 2);
        assert!(message.contains("`rw`") && message.contains("`serial=TEXT`"), "{message}");
        let (line, message) = mistake("[[disk]]\npath = '/a'\nsize = 5\n");
        assert_eq!(line, 3);
        assert!(message.contains("`size`") && message.contains("`ro`"), "{message}");
        let (_, message) = mistake("tap = 5");
        assert!(message.contains("a text such as \"tap2\", a table, or a list"), "{message}");
        let (_, message) = mistake("[[tap]]\nname = 'a/b'\n");
        assert!(message.contains("1 to 15"), "{message}");
        let (_, message) = mistake("[[port]]\nname = 'a'\n");
        assert!(message.contains("socket"), "{message}");
        let (_, message) = mistake("disk = { path = '/a', queues = 65 }");
        assert!(message.contains("1 to 64"), "{message}");
        let (_, message) = mistake("disk = { path = '/a', format = 'vmdk' }");
        assert!(message.contains("`raw`") && message.contains("`qcow2`"), "{message}");
        let (_, message) = mistake("disk = { path = '/a', serial = '' }");
        assert!(message.contains("1 to 20"), "{message}");
    }

    #[test]
    fn memory_may_be_a_number_or_a_text() {
        assert_eq!(read("mem = 512").1.unwrap(), read("mem = '512M'").1.unwrap());
    }

    #[test]
    fn unknown_option_is_named_with_its_line_and_the_known_ones() {
        let (line, message) = mistake("# a comment\nkernel = 'k'\nmemory = 512\n");
        assert_eq!(line, 3);
        assert!(message.contains("`memory`") && message.contains("`mem`"), "{message}");
    }

    #[test]
    fn wrong_value_is_explained_with_its_line() {
        let (line, message) = mistake("kernel = 'k'\n\nmem = 'lots'\n");
        assert_eq!(line, 3);
        assert!(message.contains("`lots`") && message.contains("`512M`"), "{message}");
        let (line, message) = mistake("cpus = 0");
        assert_eq!(line, 1);
        assert!(message.contains("from 1 to 255"), "{message}");
        let (_, message) = mistake("mem = true");
        assert!(message.contains("512 (MiB)"), "{message}");
        let (_, message) = mistake("rtc = 'gmt'");
        assert!(message.contains("`utc`"), "{message}");
    }

    #[test]
    fn what_is_not_toml_has_its_line() {
        let (line, message) = mistake("kernel = 'k'\ncpus 2\n");
        assert_eq!(line, 2);
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    }

    #[test]
    fn file_of_another_version_is_refused_for_that_whatever_its_keys_are() {
        let (line, message) = mistake("kernel = 'k'\nbrand-new = 5\nversion = 2\n");
        assert_eq!(line, 3);
        assert!(message.contains("version 2") && message.contains("`version = 1`"), "{message}");
        assert_eq!(read("version = 1\nmem = 5").1.unwrap(), read("mem = 5").1.unwrap());
        assert_eq!(mistake("mem = 5\nversion = 'new'").0, 2);
    }

    #[test]
    fn wrong_kind_of_value_is_told_with_its_key() {
        for (file, key) in [
            ("share = [{ path = 'a', cache = 'foo' }]", "cache"),
            ("[[share]]\npath = 'a'\ncache = 'foo'\n", "cache"),
            ("[[share]]\npath = 3\n", "path"),
            ("console = 'tty9'", "console"),
            ("[[disk]]\n path=true", "path"),
        ] {
            let (_, message) = mistake(file);
            assert!(message.starts_with(&format!("`{key}`: ")), "{file}: {message}");
        }
        assert_eq!(mistake("share = [\n{ path = 'a', cache = 'foo' }]").0, 2);
    }

    #[test]
    fn paths_that_nothing_can_have_are_refused_with_their_line() {
        let (line, message) = mistake("mem = 5\n\nshare = [{ path = \"\" }]\n");
        assert_eq!((line, message.starts_with("`path` is empty")), (3, true), "{message}");
        for file in ["kernel = ''", "initrd = ''", "[[disk]]\nbacking = ['']\npath = 'a'"] {
            assert!(mistake(file).1.contains("is empty, where a path should be"), "{file}");
        }
        for text in
            ["[[share]]\npath = \"d\\u0000x\"", "#\nshare = \"d\\u0000x\"", "#\ndisk = [\"d\\u0000x\"]"]
        {
            let (line, message) = mistake(text);
            assert_eq!(line, 2, "{text}");
            assert!(message.contains("has a NUL character") && !message.contains('\0'), "{message}");
        }
    }

    #[test]
    fn shares_know_their_line() {
        let lines = |text: &str| {
            let (folder, spec) = read(text);
            let file = folder.path().join("vm.toml");
            let line = |origin: &ShareOrigin| match origin {
                ShareOrigin::File { path, line } if *path == file => *line,
                other => panic!("{other:?}"),
            };
            spec.unwrap().share.iter().map(|share| line(&share.origin)).collect::<Vec<_>>()
        };
        assert_eq!(lines("mem = 5\nshare = 'a'"), [2]);
        assert_eq!(lines("mem = 5\nshare = { path = 'a' }"), [2]);
        assert_eq!(lines("share = [\n'a',\n\n{ path = 'b' }]"), [2, 4]);
        assert_eq!(lines("[[share]]\npath = 'a'\n\n[[share]]\npath = 'b'"), [1, 4]);
        assert_eq!(lines("mem = 5"), [] as [usize; 0]);
    }

    #[test]
    fn message_of_a_hostile_file_controls_no_terminal() {
        let (_, message) = mistake("[[share]]\npath = 'a'\ncache = \"\\u001b[31m\"\n");
        assert!(message.contains(r"\u{1b}[31m") && !message.contains('\u{1b}'), "{message}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = Spec::from_file("/nonexistent/vm.toml").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vm.toml"), "{error}");
    }
}
