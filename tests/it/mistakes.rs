//! Mistakes of users. The answer to each is one line that says what is wrong and quotes the wrong
//! word, and one line that says what to do, both in this program's own words.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use crate::support::cli::{Desk, Outcome, SIMPLE, Tool, UPLOAD};
use crate::support::proxy::{FaultProxy, answer};
use crate::support::{gzip, noise};

/// The words after `openhosting`, the exit code, a part of the line that says what is wrong, and a
/// part of the line that says what to do. `''` is an empty word.
type Mistake = (&'static str, i32, &'static str, &'static str);

const COMMANDS: &[Mistake] = &[
    ("uplaod a.img", 2, "\"uplaod\"", "Did you mean \"upload\"?"),
    (
        "donwload x y",
        2,
        "\"donwload\"",
        "Did you mean \"download\"?",
    ),
    ("publsh a.img", 2, "\"publsh\"", "Did you mean \"publish\"?"),
    ("UPLOAD a.img", 2, "\"UPLOAD\"", "Did you mean \"upload\"?"),
    ("Remove x", 2, "\"Remove\"", "Did you mean \"rm\"?"),
    ("remove x", 2, "\"remove\"", "Did you mean \"rm\"?"),
    ("drive list", 2, "\"drive\"", "Did you mean \"drives\"?"),
    ("help uplod", 2, "\"uplod\"", "Did you mean \"upload\"?"),
    ("-v ls", 2, "\"ls\"", "openhosting ls --help"),
    (
        "--verbos drives list",
        2,
        "--verbos",
        "Did you mean --verbose?",
    ),
    ("image", 2, "command is missing", "info"),
    ("image inf a.img", 2, "\"inf\"", "Did you mean \"info\"?"),
    ("image show a.img", 2, "\"show\"", "openhosting image"),
    ("image info", 2, "IMAGE", "Usage: openhosting image info"),
    ("image info nosuch.img", 1, "nosuch.img", "path"),
    (
        "image a.img",
        2,
        "a.img",
        "Run: openhosting image info a.img",
    ),
    ("image info dir", 1, "dir", "Name one disk image"),
    (
        "image info -c 0 a.img",
        2,
        "--chunk \"0\"",
        "for example 4M",
    ),
    ("image info --map dir a.img", 1, "dir", "another name"),
    (
        "image info --map a.img a.img",
        1,
        "a.img is there already",
        "another name",
    ),
    (
        "image info --format raww a.img",
        2,
        "\"raww\"",
        "raw, qcow2",
    ),
    ("completions", 2, "SHELL", "Usage: openhosting completions"),
    (
        "completions tcsh",
        2,
        "\"tcsh\"",
        "bash, zsh, fish or powershell",
    ),
    (
        "completions bash d e",
        2,
        "\"e\"",
        "Usage: openhosting completions",
    ),
    ("completions bash a.img/x", 1, "a.img/x", "directory"),
    ("man --page rn", 2, "\"rn\"", "openhosting-rm"),
    ("man d --page openhosting", 2, "--page", "Leave out"),
    ("version --verbos", 2, "--verbos", "Did you mean --verbose?"),
    ("version now", 2, "\"now\"", "Usage: openhosting version"),
    ("ls --logn", 2, "--logn", "Did you mean --long?"),
    ("ls web", 2, "\"web\"", "Usage: openhosting ls"),
    ("show", 2, "is missing", "Usage: openhosting show"),
    ("show a b", 2, "\"b\"", "Usage: openhosting show"),
    ("show nosuch", 1, "\"nosuch\"", "openhosting ls"),
    ("show THERE", 1, "\"THERE\"", "Did you mean \"there\"?"),
    (
        "show 0012e24-6eae-4279-9912-3432f698cec8",
        2,
        "31 digits",
        "openhosting ls",
    ),
    ("rm", 2, "is missing", "Usage: openhosting rm"),
    ("rm -f x", 2, "-f", "-y destroys"),
    ("rm -y nosuch", 1, "\"nosuch\"", "openhosting ls"),
    ("rm DRIVE", 2, "terminal", "--yes"),
    ("api", 2, "CMD", "Usage: openhosting api"),
    ("api -f", 2, "-f needs a value", "Write -f FILENAME"),
    (
        "api -c -f a.img drives list",
        2,
        "-c cannot be used with -f",
        "Leave out",
    ),
    ("api -f nosuch drives list", 1, "nosuch", "path"),
    ("api -f dir drives list", 1, "dir", "Name a file"),
    ("doctor now", 2, "\"now\"", "Usage: openhosting doctor"),
    ("login a/b", 2, "\"a/b\"", "for example work"),
    ("login a b", 2, "\"b\"", "Usage: openhosting login"),
    (
        "login --endpoint",
        2,
        "--endpoint needs a value",
        "Write --endpoint URI",
    ),
    ("probe now", 2, "\"now\"", "Usage: openhosting probe"),
    ("probe --no-sav", 2, "--no-sav", "Did you mean --no-save?"),
];

const UPLOADS: &[Mistake] = &[
    ("upload", 2, "IMAGE", "Usage: openhosting upload"),
    (
        "upload a.img b.img",
        2,
        "\"b.img\"",
        "Usage: openhosting upload",
    ),
    ("upload -n", 2, "--name needs a value", "Write --name NAME"),
    ("upload -n '' a.img", 2, "-n is empty", "Write -n NAME"),
    (
        "upload -d DRIVE -n new a.img",
        2,
        "-n is for a new drive, and -d selects",
        "Leave out -n",
    ),
    (
        "upload --resume-from-drive DRIVE -t ssd a.img",
        2,
        "-t is for a new drive",
        "leave out --resume-from-drive",
    ),
    ("upload --nmae x a.img", 2, "--nmae", "Did you mean --name?"),
    ("upload --force a.img", 2, "--force", "-h"),
    ("upload -x a.img", 2, "-x", "-h"),
    ("upload -c 4X a.img", 2, "\"4X\"", "for example 4M"),
    ("upload -c 0 a.img", 2, "\"0\"", "for example 4M"),
    ("upload -c 3 a.img", 2, "\"3\"", "at least 4K"),
    ("upload -c 2G a.img", 2, "\"2G\"", "at most 1G"),
    ("upload -c -1 a.img", 2, "-1", "-h"),
    ("upload -c 1.5M a.img", 2, "\"1.5M\"", "for example 4M"),
    ("upload -o 01 a.img", 2, "\"01\"", "for example 4M"),
    ("upload -o x a.img", 2, "\"x\"", "for example 4M"),
    ("upload -j 0 a.img", 2, "\"0\"", "Use 1 to 256"),
    ("upload -j 1000 a.img", 2, "\"1000\"", "Use 1 to 256"),
    ("upload -j many a.img", 2, "\"many\"", "Use 1 to 256"),
    (
        "upload --min-jobs 8 -j 4 a.img",
        2,
        "--min-jobs 8",
        "--jobs",
    ),
    ("upload --level 13 a.img", 2, "\"13\"", "auto, 0, 1"),
    ("upload --level fast a.img", 2, "\"fast\"", "auto, 0, 1"),
    (
        "upload --verify yes a.img",
        2,
        "\"yes\"",
        "none, sample or full",
    ),
    (
        "upload --progress dots a.img",
        2,
        "\"dots\"",
        "auto, bar, plain, json or none",
    ),
    (
        "upload --github=often a.img",
        2,
        "\"often\"",
        "never, auto or always",
    ),
    ("upload --max-outage 5 a.img", 2, "\"5\"", "30s, 15m or 2h"),
    (
        "upload --max-outage ever a.img",
        2,
        "\"ever\"",
        "30s, 15m or 2h",
    ),
    ("upload --deadline 1x a.img", 2, "\"1x\"", "30s, 15m or 2h"),
    (
        "upload --stall-timeout 1ms a.img",
        2,
        "\"1ms\"",
        "at least 100ms",
    ),
    ("upload --limit-rate 10 a.img", 2, "\"10\"", "at least 1024"),
    (
        "upload --limit-rate fast a.img",
        2,
        "\"fast\"",
        "for example 4M",
    ),
    ("upload --grow 9g a.img", 2, "\"9g\"", "for example 4M"),
    ("upload --grow 10 a.img", 2, "--grow", "--grow +10G"),
    (
        "upload --grow +1G -d x a.img",
        2,
        "--grow cannot be used with --drive",
        "Leave out",
    ),
    ("upload --size 0 a.img", 2, "\"0\"", "for example 20G"),
    ("upload --size 20MX a.img", 2, "\"20MX\"", "for example 4M"),
    ("upload --size 1000 a.img", 2, "1000", "Leave --size out"),
    ("upload -n web~1 a.img", 2, "\"web~1\"", "-n NAME"),
    ("upload -q --progress bar a.img", 2, "--quiet", "Leave out"),
    (
        "upload --sha256 abc a.img",
        2,
        "\"abc\"",
        "64 hexadecimal digits",
    ),
    ("upload --sha256-file nosuch a.img", 1, "nosuch", "path"),
    (
        "upload --sha256-file a.img a.img",
        2,
        "a.img",
        "--sha256 HEX",
    ),
    ("upload --shard 3/2 -d x a.img", 2, "\"3/2\"", "1/3"),
    ("upload --shard one -d x a.img", 2, "\"one\"", "1/3"),
    (
        "upload --shard 1/2 -n web a.img",
        2,
        "a drive that exists, which -d names",
        "prints: openhosting upload --shard 1/2 a.img -d",
    ),
    (
        "upload a.img web",
        2,
        "\"web\"",
        "Run: openhosting upload -n web a.img",
    ),
    (
        "upload -dash.img",
        2,
        "IMAGE is missing",
        "For the file -dash.img, write: ./-dash.img",
    ),
    ("upload --format qcow3 a.img", 2, "\"qcow3\"", "raw, qcow2"),
    (
        "upload --format qcow2 a.img",
        1,
        "qcow2",
        "qemu-img check a.img",
    ),
    (
        "upload --holes maybe a.img",
        2,
        "\"maybe\"",
        "trust, sample or read",
    ),
    (
        "upload -z --format raw a.img",
        2,
        "--gunzip cannot be used with --format",
        "Leave out",
    ),
    ("upload -z a.img", 1, "a.img", "Leave -z out"),
    ("upload -z -", 2, "-z", "Leave -z out"),
    ("upload --disk x a.img", 1, "a.img", "--disk"),
    ("upload nosuch.img", 1, "nosuch.img", "path"),
    ("upload dir", 1, "dir", "Name one disk image"),
    (
        "upload empty.img",
        1,
        "empty.img",
        "disk image that you mean",
    ),
    ("upload /dev/null", 1, "/dev/null", "disk"),
    ("upload --local a.img a.img", 1, "a.img", "directory"),
    (
        "upload --local c --endpoint e a.img",
        2,
        "--local cannot be used with --endpoint",
        "Leave out",
    ),
    ("upload -d nosuch a.img", 1, "\"nosuch\"", "openhosting ls"),
    (
        "upload -d 0012e24a-6eae-4279-9912-3432f698ceO8 a.img",
        2,
        "hexadecimal digit",
        "openhosting ls",
    ),
    ("upload -d UUID a.img", 1, "UUID", "openhosting ls"),
    ("upload --journal dir a.img", 1, "dir", "--journal"),
    (
        "upload --journal j --no-journal a.img",
        2,
        "--journal",
        "Leave out",
    ),
    (
        "upload --journal newdir/ a.img",
        1,
        "newdir/ does not exist",
        "make the directory",
    ),
    ("upload --trace dir a.img", 1, "dir", "another file"),
    (
        "upload --profile nosuch a.img",
        2,
        "\"nosuch\"",
        "Its profiles are: work",
    ),
    ("upload --tier", 2, "--tier", "Write --tier TIER"),
    (
        "upload http://127.0.0.1:1/x.img",
        1,
        "127.0.0.1:1",
        "Check the URL",
    ),
];

const DOWNLOADS: &[Mistake] = &[
    ("download", 2, "are missing", "Usage: openhosting download"),
    ("download x", 2, "FILE", "Usage: openhosting download"),
    ("download a b c", 2, "\"c\"", "Usage: openhosting download"),
    ("download nosuch out", 1, "\"nosuch\"", "openhosting ls"),
    (
        "download ther out",
        1,
        "\"ther\"",
        "Did you mean \"there\"?",
    ),
    ("download abc out", 1, "at least 4 digits", "openhosting ls"),
    (
        "download --sha256 x out",
        2,
        "--sha256",
        "--checksum prints",
    ),
    (
        "download --local c x out",
        2,
        "--local",
        "openhosting server --data DIR",
    ),
    ("download UUID out", 1, "UUID", "openhosting ls"),
    (
        "download 0012e24-6eae-4279-9912-3432f698cec8 out",
        2,
        "31 digits",
        "openhosting ls",
    ),
    (
        "download DRIVE dir",
        1,
        "dir is a directory",
        "dir/disk.img",
    ),
    (
        "download DRIVE newdir/",
        1,
        "newdir/ does not exist",
        "make the directory",
    ),
    ("download DRIVE no/such/out", 1, "no/such/out", "path"),
    ("download DRIVE a.img", 1, "a.img", "--force"),
    ("download DRIVE a.img/out", 1, "a.img/out", "another path"),
    ("download -c 4X DRIVE out", 2, "\"4X\"", "for example 4M"),
    ("download -o -5 DRIVE out", 2, "-5", "-h"),
    (
        "download --format vmdk DRIVE out",
        2,
        "\"vmdk\"",
        "raw or qcow2",
    ),
    (
        "download --compress rar DRIVE out",
        2,
        "\"rar\"",
        "gz, zst, xz, zlib or zstd",
    ),
    (
        "download --compress zlib DRIVE out",
        2,
        "zlib",
        "--format qcow2",
    ),
    (
        "download --format qcow2 --compress gz DRIVE out",
        2,
        "gz",
        "zlib or zstd",
    ),
    (
        "download --gzip --zstd DRIVE out",
        2,
        "--gzip cannot be used with --zstd",
        "Leave out",
    ),
    ("download --format qcow2 DRIVE -", 2, "qcow2", "Name a file"),
    ("download --json DRIVE -", 2, "--json", "--progress json"),
    ("download --shard 1/2 DRIVE -", 2, "stdout", "Name a file"),
    ("download --join 0 DRIVE out", 2, "\"0\"", "for example 3"),
    (
        "download --join all DRIVE out",
        2,
        "\"all\"",
        "for example 3",
    ),
    (
        "download --checksum --shard 1/2 DRIVE out",
        2,
        "--shard",
        "Leave out",
    ),
    (
        "download --journal j --compress gz DRIVE out",
        2,
        "journal",
        "Leave --journal out",
    ),
    (
        "download --verify all DRIVE out",
        2,
        "\"all\"",
        "none, sample or full",
    ),
];

const PUBLICATIONS: &[Mistake] = &[
    ("publish a.img", 2, "--name", "Usage: openhosting publish"),
    (
        "publish nightly a.img",
        2,
        "one word too many",
        "Run: openhosting publish -n nightly a.img",
    ),
    (
        "publish -n x a.img.gz",
        2,
        "read once",
        "Unpack it first: gzip -dk a.img.gz",
    ),
    ("publish -n '' a.img", 2, "--name", "Write --name NAME"),
    ("publish -n x", 2, "no image", "--cleanup"),
    (
        "publish -n x --min-jobs 8 -j 4 a.img",
        2,
        "--min-jobs 8",
        "--jobs",
    ),
    (
        "publish -n x --keep 0 a.img",
        2,
        "\"0\" must be at least 1",
        "Use 1 or more, for example 3",
    ),
    (
        "publish -n x --keep many a.img",
        2,
        "\"many\"",
        "for example 3",
    ),
    (
        "publish -n x --keep 99999999999 a.img",
        2,
        "\"99999999999\" is too large",
        "for example 3",
    ),
    ("publish -n x --tag '' a.img", 2, "--tag", "--tag"),
    (
        "publish -n x --receipt r --sign-key a.toml a.img",
        2,
        "a.toml: it is no minisign key",
        "make one without a password: minisign -GW",
    ),
    (
        "publish -n x --sign-key k a.img",
        2,
        "--receipt",
        "Usage: openhosting publish",
    ),
    (
        "publish -n x --cleanup --join a.img",
        2,
        "--join",
        "Leave out",
    ),
    ("publish -n x nosuch.img", 1, "nosuch.img", "path"),
    (
        "publish -n x --receipt newdir/r a.img",
        1,
        "newdir/r: No such file",
        "path",
    ),
    (
        "publish -n x --receipt newdir/ a.img",
        1,
        "newdir/ does not exist",
        "make the directory",
    ),
    (
        "publish -n x sums",
        1,
        "sums is a list of checksums",
        "with openhosting upload --sha256-file",
    ),
    ("publish -n x dir", 1, "dir", "Name one disk image"),
    (
        "publish -n x --base nosuch a.img",
        1,
        "\"nosuch\"",
        "openhosting ls",
    ),
    (
        "publish -n x --readers bob a.img",
        2,
        "\"bob\"",
        "--readers all",
    ),
    ("publish -n x --level 99 a.img", 2, "\"99\"", "auto, 0, 1"),
    (
        "publish -n x --receipt r --sign-key nosuch a.img",
        1,
        "nosuch",
        "path",
    ),
    ("verify", 2, "RECEIPT", "Usage: openhosting verify"),
    ("verify nosuch.json", 1, "nosuch.json", "path"),
    ("verify nightly", 1, "nightly", "not the name of a drive"),
    (
        "verify a.img",
        2,
        "a.img: It is no receipt",
        "publish --receipt FILE\" wrote. An upload with --verify full",
    ),
    ("verify dir", 1, "dir", "directory"),
    ("verify --sample 0 r", 2, "\"0\"", "above 0"),
    ("verify --sample 101 r", 2, "\"101\"", "up to 100"),
    ("verify --sample some r", 2, "\"some\"", "above 0"),
    ("verify -j 1.5 r", 2, "\"1.5\"", "Use 1 to 256"),
    ("verify r s", 2, "\"s\"", "Usage: openhosting verify"),
];

const SERVERS: &[Mistake] = &[
    (
        "server --listen localhost:80",
        2,
        "\"localhost:80\"",
        "for example 127.0.0.1",
    ),
    (
        "server --listen 127.0.0.1",
        2,
        "\"127.0.0.1\"",
        "for example 127.0.0.1:",
    ),
    (
        "server --listen 127.0.0.1:99999",
        2,
        "\"127.0.0.1:99999\"",
        "for example 127.0.0.1:",
    ),
    (
        "server --data d --listen 0.0.0.0:0",
        2,
        "0.0.0.0",
        "--tls-cert",
    ),
    (
        "server --data d --listen 127.0.0.1:PORT",
        1,
        "127.0.0.1:PORT",
        "port",
    ),
    ("server --data a.img", 1, "a.img", "directory"),
    ("server --data d --user bob", 2, "no colon", "UUID:KEY"),
    ("server --data d --users-file nosuch", 1, "nosuch", "path"),
    (
        "server --data d --users-file open.users",
        2,
        "open.users",
        "chmod 600",
    ),
    (
        "server --tls-cert a.pem",
        2,
        "--tls-key",
        "Usage: openhosting server",
    ),
    (
        "server --data d --tls-cert nosuch --tls-key nosuch",
        1,
        "nosuch",
        "path",
    ),
    ("server --max-drives many", 2, "\"many\"", "for example 100"),
    ("server --max-bytes 1x", 2, "\"1x\"", "for example 4M"),
    ("server --rate-limit 20", 2, "\"20\"", "20/s"),
    ("server --wrong-key-limit often", 2, "\"often\"", "20/s"),
    (
        "server --max-connections 0",
        2,
        "\"0\" must be at least 1",
        "Use 1 or more, for example 3",
    ),
    (
        "server --forward 99999",
        2,
        "\"99999\" is too large",
        "for example 3",
    ),
    (
        "server --guest-network lan",
        2,
        "\"lan\"",
        "none, internet or host",
    ),
    (
        "server --data d --faults nosuch.toml",
        1,
        "nosuch.toml",
        "path",
    ),
    (
        "server --data d --faults a.toml",
        2,
        "a.toml",
        "for example",
    ),
    ("server --log-format xml", 2, "\"xml\"", "text or json"),
    ("server web", 2, "\"web\"", "Usage: openhosting server"),
];

/// Mistakes in the environment or on the network: variables that are set, and a call.
const ENDPOINTS: &[(&[(&str, &str)], Mistake)] = &[
    (&[("OHURI", "")], ("ls", 2, "OHURI", "openhosting login")),
    (&[("OHAUTH", "")], ("ls", 2, "OHAUTH", "openhosting login")),
    (
        &[("OHURI", "127.0.0.1")],
        ("ls", 2, "\"127.0.0.1\"", "https://"),
    ),
    (
        &[("OHURI", "no url")],
        ("upload a.img", 2, "\"no url\"", "https://"),
    ),
    (
        &[("OHURI", "http://192.0.2.1/")],
        ("ls", 2, "192.0.2.1", "Use https"),
    ),
    (
        &[("OHURI", "ftp://127.0.0.1/")],
        ("ls", 2, "ftp", "https://"),
    ),
    (
        &[("OHURI", "https://u:p@127.0.0.1/")],
        ("ls", 2, "OHAUTH", ""),
    ),
    (&[("OHAUTH", ":key")], ("ls", 2, "user", "OHAUTH=")),
    (
        &[("OHAUTH", "user")],
        ("ls", 2, "OHAUTH does not begin with", "OHAUTH="),
    ),
    (
        &[("OHAUTH", ""), ("EHAUTH", "user")],
        ("ls", 2, "EHAUTH does not begin", "OHAUTH="),
    ),
    (
        &[("WORK", "user")],
        (
            "ls --profile work",
            2,
            "the profile \"work\" do not",
            "<user uuid>:",
        ),
    ),
    (
        &[("OHAUTH", UUID)],
        ("ls", 2, "no secret API key", "OHAUTH="),
    ),
    (&[("OHAUTH", "somebody:wrong")], ("ls", 1, "401", "OHAUTH")),
    (
        &[("OHAUTH", "somebody:wrong")],
        ("upload a.img", 1, "401", "OHAUTH"),
    ),
    (
        &[("OPENHOSTING_PROFILE", "nosuch"), ("OHURI", "")],
        ("ls", 2, "\"nosuch\"", "Its profiles are: work"),
    ),
    (
        &[],
        (
            "ls --profile nosuch",
            2,
            "\"nosuch\"",
            "Its profiles are: work",
        ),
    ),
    (
        &[("XDG_CONFIG_HOME", "/nonexistent")],
        (
            "ls --profile work",
            2,
            "no config /nonexistent",
            "openhosting login work",
        ),
    ),
    (&[], ("ls --endpoint nosuch", 2, "\"nosuch\"", "https://")),
    // What was created elsewhere would not be found.
    (
        &[],
        (
            "upload --endpoint http://127.0.0.1:1/ --shard 1/2 -n web a.img",
            2,
            "| openhosting --endpoint http://127.0.0.1:1/ -c drives create",
            "upload --endpoint http://127.0.0.1:1/ --shard 1/2 a.img -d",
        ),
    ),
    (
        &[],
        ("ls --key a.img", 2, "--cert", "Usage: openhosting ls"),
    ),
    (&[], ("ls --cacert nosuch", 1, "nosuch", "path")),
    (&[], ("ls --cacert a.img", 2, "a.img", "PEM")),
    (&[], ("ls --cert nosuch", 1, "nosuch", "path")),
    (
        &[("OHURI", "http://127.0.0.1:1/")],
        (
            "drives list",
            75,
            "127.0.0.1:1 (from OHURI): connection refused",
            "Is the server running",
        ),
    ),
    (
        &[],
        (
            "api --endpoint http://127.0.0.1:1/ health",
            75,
            "127.0.0.1:1 (from --endpoint)",
            "Is the server running",
        ),
    ),
    (
        &[],
        (
            "api --profile work health",
            75,
            "(from the profile \"work\" in ",
            "Is the server running",
        ),
    ),
    (
        &[("OHURI", "http://127.0.0.1:1/")],
        (
            "upload --max-outage 1s a.img",
            75,
            "(from OHURI)",
            "Is the server running",
        ),
    ),
    (
        &[("OHURI", "HTTPS")],
        (
            "drives list",
            1,
            "(from OHURI): the answer is not TLS",
            "http://",
        ),
    ),
    (&[("OHURI", "HTTPS")], ("ls", 1, "not TLS", "http://")),
];

/// Texts of libraries, which no user should see.
const RAW: &[&str] = &[
    "os error",
    "Error(",
    "Err(",
    "Some(",
    "panicked",
    "kind: ",
    "invalid digit",
    "non-zero type",
    "Usage { ",
];

struct Scene {
    desk: Desk,
    uri: String,
    drive: String,
}

impl Scene {
    /// Splits the words, and replaces placeholders by the values of this run.
    fn words(&self, words: &str) -> Vec<String> {
        let port = self.uri.trim_end_matches('/').rsplit(':').next().unwrap();
        let made = |word: &str| match word {
            "''" => String::new(),
            "DRIVE" => self.drive.clone(),
            "UUID" => UUID.to_owned(),
            word => word.replace("PORT", port),
        };
        words.split(' ').map(made).collect()
    }

    fn tool(&self, words: &str) -> Tool<'_> {
        let tool = self.desk.tool(SIMPLE).list(self.words(words));
        tool.env("OHURI", &self.uri)
    }

    /// Returns which rules the answer to a mistake violates.
    fn faults(&self, (words, code, what, hint): Mistake, outcome: &Outcome) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |is_good: bool, rule: &str| {
            if !is_good {
                faults.push(rule.to_owned());
            }
        };
        let made = |text: &str| self.words(text).join(" ");
        let mut lines: Vec<_> = outcome.stderr.lines().collect();
        // The command that repeats the call later is an additional line.
        if let Some(at) = lines.iter().position(|line| is_about_another_run(line)) {
            // Only a transfer has something to start again.
            check(
                code == 75 && at + 2 == lines.len() && words.starts_with("upload"),
                "a command at the end",
            );
            lines.truncate(at);
        }
        check(outcome.status.code() == Some(code), "another exit code");
        check(outcome.stdout.is_empty(), "stdout");
        check((2..=3).contains(&lines.len()), "not two or three lines");
        check(lines[0].starts_with("openhosting"), "who says it");
        let (last, said) = lines.split_last().unwrap();
        check(
            said.iter().any(|line| line.contains(&made(what))),
            "what is wrong",
        );
        check(last.contains(&made(hint)), "what to do");
        check(
            !last.starts_with("openhosting"),
            "no line of its own says what to do",
        );
        for raw in RAW {
            check(!outcome.stderr.contains(raw), raw);
        }
        faults
            .iter()
            .map(|fault| format!("{words}: {fault}\n{}", outcome.stderr))
            .collect()
    }
}

const UUID: &str = "0012e24a-6eae-4279-9912-3432f698cec8";

fn is_about_another_run(line: &str) -> bool {
    line.ends_with("with:")
}

fn scene(desk: Desk, uri: String) -> Scene {
    for name in ["a.img", "b.img"] {
        desk.file(name, &noise(1, 65_536));
    }
    desk.file("empty.img", b"");
    let sums = format!("{}  a.img\n", "0123456789abcdef".repeat(4));
    desk.file("sums", sums.as_bytes());
    desk.file("-dash.img", b"any");
    desk.file("a.img.gz", &gzip(&noise(1, 65_536)));
    desk.file("a.toml", b"[nonsense\n");
    let open = desk.file("open.users", format!("{UUID}:secret\n").as_bytes());
    std::fs::set_permissions(open, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::create_dir(desk.path("dir")).unwrap();
    let home = desk.path("../home");
    std::fs::create_dir_all(home.join(".config/openhosting")).unwrap();
    let config =
        "[profiles.work]\nendpoint = \"http://127.0.0.1:1/\"\ncredentials.env = \"WORK\"\n";
    std::fs::write(home.join(".config/openhosting/config.toml"), config).unwrap();
    let tool = desk.simple(&uri).args("upload -q -n there a.img");
    let drive = tool.run().code(0).created();
    Scene { desk, uri, drive }
}

#[test]
fn every_mistake_prints_one_line_and_a_remedy() {
    let desk = Desk::new();
    let server = desk.server();
    let scene = scene(desk, server.uri.clone());
    let mut faults = Vec::new();
    let tables = [COMMANDS, UPLOADS, DOWNLOADS, PUBLICATIONS, SERVERS];
    let calls = tables
        .into_iter()
        .flatten()
        .map(|mistake| (&[][..], *mistake));
    let all: Vec<_> = calls.chain(ENDPOINTS.iter().copied()).collect();
    let mut seen = std::collections::BTreeSet::new();
    for (variables, mistake) in &all {
        assert!(seen.insert((variables, mistake.0)), "twice: {mistake:?}");
        let mut tool = scene.tool(mistake.0).env("WORK", "somebody:key");
        for (name, value) in *variables {
            let https = scene.uri.replace("http://", "https://");
            let value = if *value == "HTTPS" { &*https } else { value };
            tool = tool.env(name, value);
        }
        faults.extend(scene.faults(*mistake, &tool.run()));
    }
    assert!(all.len() >= 150, "{}", all.len());
    assert!(
        faults.is_empty(),
        "{} of {}:\n{}",
        faults.len(),
        all.len(),
        faults.join("\n")
    );
    for new in ["out", "newdir"] {
        assert!(!scene.desk.path(new).exists(), "{new}");
    }
}

#[test]
fn advice_names_no_flag_that_the_command_lacks() {
    let desk = Desk::new();
    let busy = FaultProxy::stub(|_| answer(503, &["Retry-After: 3600"], b""));
    let listed = desk.simple(&busy.uri()).arg("ls").run().code(75);
    let hint = listed.stderr.lines().last();
    assert_eq!(hint, Some("Run the same command again then"));
}

#[test]
fn only_for_a_relative_path_the_hint_says_where_it_begins() {
    let desk = Desk::new();
    let work = desk.work();
    let relative = format!(
        "Check the path; a relative one in an argument begins at {}",
        work.canonicalize().unwrap().display()
    );
    for (path, hint) in [("nosuch", &*relative), ("/nosuch/img", "Check the path")] {
        for words in ["image info", "ls --cacert", "api drives list -f"] {
            let outcome = desk.simple("http://127.0.0.1:1/").args(words).arg(path);
            let outcome = outcome.run().code(1);
            assert_eq!(outcome.stderr.lines().last(), Some(hint), "{outcome:?}");
        }
    }
}

/// Files that this user may not read or write. Root may, so for root these tests run as another
/// user.
#[test]
fn a_word_that_is_not_utf_8_is_an_ordinary_mistake() {
    let desk = Desk::new();
    let server = desk.server();
    let word = std::ffi::OsStr::from_bytes(b"b\xff\xfed.img");
    for words in [
        "show",
        "ls",
        "rm -y",
        "upload --limit-rat 1M",
        "upload a b",
        "api drives",
    ] {
        let tool = desk.tool(SIMPLE).env("OHURI", &server.uri);
        let outcome = tool.args(words).arg(word).run();
        assert!(
            matches!(outcome.status.code(), Some(1 | 2)),
            "{words}: {outcome:?}"
        );
        assert!(!outcome.stderr.contains("panicked"), "{words}: {outcome:?}");
    }
}

#[test]
fn a_hint_names_the_program_that_was_called() {
    let desk = Desk::new();
    let server = desk.server();
    let pipe = desk.path("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let twice = gzip(&gzip(&noise(1, 5000)));
    let qcow2 = gzip(&[b"QFI\xfb\0\0\0\x03", &[0; 504][..]].concat());
    for (tool, words, program) in [
        (SIMPLE, "upload -n x pipe", "openhosting upload"),
        (UPLOAD, "-n x pipe", "openhosting-upload"),
    ] {
        let run = |words: &str| {
            let tool = desk.tool(tool).env("OHURI", &server.uri);
            tool.args(words).run().code(1)
        };
        let outcome = run(words);
        let _ = outcome.says(&format!("as stdin: {program} -n NAME - < pipe"));
        for (name, content, hint) in [
            ("twice.gz", &twice, "gzip -dc twice.gz | PROGRAM -n NAME -"),
            ("q.gz", &qcow2, "gzip -dc q.gz > q && PROGRAM q"),
        ] {
            desk.file(name, content);
            let outcome = run(&words.replace("pipe", name));
            let _ = outcome.says(&hint.replace("PROGRAM", program));
        }
    }
}

#[test]
fn a_missing_permission_is_reported_with_the_file() {
    let desk = Desk::new();
    let server = desk.server();
    let scene = scene(desk, server.uri.clone());
    let closed = scene.desk.file("closed.img", &noise(1, 65_536));
    std::fs::set_permissions(closed, PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::set_permissions(scene.desk.path("dir"), PermissionsExt::from_mode(0o555)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root && !crate::support::needs::needs(&[crate::support::needs::Need::Command("setpriv")])
    {
        return;
    }
    let state = scene.desk.path("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).unwrap();
    let mut faults = Vec::new();
    for mistake in [
        ("upload closed.img", 1, "closed.img", "permissions"),
        ("image info closed.img", 1, "closed.img", "permissions"),
        ("publish -n x closed.img", 1, "closed.img", "permissions"),
        ("download DRIVE dir/out", 1, "dir/out:", "permissions"),
        (
            "download --compress gz DRIVE dir/out",
            1,
            "dir/out:",
            "permissions",
        ),
        ("verify closed.img", 1, "closed.img", "permissions"),
        (
            "api -f closed.img drives list",
            1,
            "closed.img",
            "permissions",
        ),
        ("ls --cacert closed.img", 1, "closed.img", "permissions"),
        ("server --data dir/d", 1, "dir/d", "permissions"),
    ] {
        let tool = match is_root {
            true => {
                let tool = scene.desk.tool("setpriv");
                let tool = tool.args("--reuid=65534 --regid=65534 --clear-groups");
                tool.arg(SIMPLE)
                    .list(scene.words(mistake.0))
                    .env("OHURI", &scene.uri)
            }
            false => scene.tool(mistake.0),
        };
        let tool = tool.env("XDG_STATE_HOME", &state);
        faults.extend(scene.faults(mistake, &tool.run()));
    }
    assert!(
        faults.is_empty(),
        "{}:\n{}",
        faults.len(),
        faults.join("\n")
    );
}
