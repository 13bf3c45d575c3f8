//! What the sections of the help and of the manual pages say. rustfmt leaves this file alone: a row
//! is one entry.

/// A term and its explanation, or what an example does and its command.
pub(in crate::cli) type Entry = (&'static str, &'static str);

/// The sections after the flags of a command.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Sections {
    /// How the values of flags are written, by their names in the help.
    pub(in crate::cli) values: &'static [Entry],
    /// Examples: what the command does, and the command.
    pub(in crate::cli) examples: &'static [Entry],
    /// Variables of the environment.
    pub(in crate::cli) environment: &'static [Entry],
    /// Files and directories.
    pub(in crate::cli) files: &'static [Entry],
    /// Exit codes, and when the program ends with them.
    pub(in crate::cli) exit_status: &'static [Entry],
}

pub(super) const NOTHING: Sections = Sections {
    values: &[],
    examples: &[],
    environment: &[],
    files: &[],
    exit_status: &[],
};

const TIME: Entry = ("TIME", "a number and a unit: 30s, 15m, 2h");
const BYTES: &str =
    "a number of bytes, or with a unit: 4k, 4M, 4G, 4T; 4M is 4 MiB, 4MB is 4 million bytes";
const RATE: Entry = ("RATE", "requests per second, minute or hour: 20/s, 600/m, 10000/h");

const DONE: Entry = ("0", "done");
const FAILED: Entry = ("1", "failed");
const USAGE: Entry = ("2",
    "a flag, an argument, the environment or a config file is wrong; nothing was changed");
/// As [`USAGE`], of commands that change nothing anyway, and of a server, which may have begun.
const WRONG: Entry = ("2", "a flag, an argument, the environment or a config file is wrong");
const DIFFERS: Entry = ("4",
    "the image or the drive changed since the transfer began, or the copy or a digest differs");
const GAVE_UP: Entry = ("75", "gave up for now: run it again later");
const INTERRUPTED: Entry = ("130", "stopped by SIGINT (Ctrl-C)");
const READER_ENDED: Entry = ("141", "the program that reads the output has ended");
const TERMINATED: Entry = ("143", "stopped by SIGTERM");

/// The exit codes of commands that send nothing.
const LOCAL_STATUS: &[Entry] = &[DONE, FAILED, WRONG];

/// The exit codes of the server.
const SERVER_STATUS: &[Entry] = &[
    ("0", "stopped by SIGINT (Ctrl-C) or SIGTERM"), FAILED, WRONG,
    ("130", "a second SIGINT stopped it during a request"),
    ("143", "a second SIGTERM stopped it during a request"),
];

/// The exit codes of transfers, which another run continues.
const TRANSFER_STATUS: &[Entry] = &[
    DONE, FAILED, USAGE, DIFFERS,
    ("75", "gave up for now, or at the deadline: run it again later"),
    ("130", "stopped by SIGINT (Ctrl-C): run it again to continue"), READER_ENDED,
    ("143", "stopped by SIGTERM: run it again to continue"),
];

/// The exit codes of the command that compares a drive with a receipt.
const VERIFY_STATUS: &[Entry] = &[
    DONE, FAILED, USAGE,
    ("4", "the drive differs from the receipt, or the receipt's signature is wrong"), GAVE_UP,
    INTERRUPTED, READER_ENDED, TERMINATED,
];

/// The exit codes of the command that only reads an image, which may be on a web server.
const IMAGE_STATUS: &[Entry] = &[
    DONE, FAILED, USAGE, ("4", "the image changed during the run"), GAVE_UP, INTERRUPTED,
    READER_ENDED, TERMINATED,
];

/// The exit codes of other commands that call an endpoint.
const CALL_STATUS: &[Entry] = &[
    DONE, FAILED, USAGE, GAVE_UP, INTERRUPTED, READER_ENDED, TERMINATED,
];

const OHURI: Entry = ("OHURI", "URI of the endpoint; EHURI is an alias");
const OHAUTH: Entry = ("OHAUTH",
    "credentials, <user uuid>:<secret API key>; EHAUTH is an alias. Without a key the program asks for it");
const PROFILE: Entry = ("OPENHOSTING_PROFILE", "profile to use if OHURI or OHAUTH is not set");
const PROXY: Entry = ("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
    "proxies, and hosts to reach without one");
const STATE_HOME: Entry = ("XDG_STATE_HOME",
    "directory that contains openhosting/, with journals, findings and receipts [default: $STATE_DIRECTORY, which systemd sets for a service, or ~/.local/state]");
const CONFIG_HOME: Entry = ("XDG_CONFIG_HOME",
    "directory that contains openhosting/config.toml [default: ~/.config]");
const NO_COLOR: Entry = ("NO_COLOR", "print without colour");

const CONFIG: Entry = ("~/.config/openhosting/config.toml",
    "profiles: endpoint, credentials and certificates under a name");
const JOURNALS: Entry = ("~/.local/state/openhosting/journals/",
    "what unfinished uploads have done; a finished one removes its journal");
const FINDINGS: Entry = ("~/.local/state/openhosting/findings/",
    "what \"openhosting probe\" found out about endpoints");

const RECEIPTS: Entry = ("~/.local/state/openhosting/receipts/",
    "receipts of what this machine published, for the next publication");

const ACCESS: &[Entry] = &[OHURI, OHAUTH, PROFILE, PROXY];

/// The sections of each command; of `openhosting` itself, those of the program.
pub(super) const ALL: &[(&str, Sections)] = &[
    ("upload", Sections {
        examples: &[
            ("Upload an image to a new drive that is named after it", "openhosting upload disk.img"),
            ("Choose the name, and verify every byte",
                "openhosting upload -n web-1 --verify full disk.qcow2"),
            ("Overwrite an existing drive", "openhosting upload -d web-1 disk.img"),
            ("Fetch the image from a web server and check its SHA-256",
                "openhosting upload --sha256-file https://host/sums https://host/disk.xz"),
            ("Try it without an account", "openhosting upload --local ./cloud disk.img"),
        ],
        values: &[TIME, ("BYTES, SIZE, CHUNK, OFFSET", BYTES)],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, STATE_HOME, NO_COLOR],
        files: &[CONFIG, JOURNALS, FINDINGS],
        exit_status: TRANSFER_STATUS,
    }),
    ("download", Sections {
        examples: &[
            ("Download a drive to a raw image", "openhosting download web-1 web-1.img"),
            ("Write a compressed qcow2 instead",
                "openhosting download --format qcow2 --compress zstd web-1 web-1.qcow2"),
            ("Download the version before the newest one", "openhosting download nightly~1 before.img"),
            ("Pipe the disk into another program", "openhosting download -q web-1 - | sha256sum"),
        ],
        values: &[TIME, ("BYTES, CHUNK, OFFSET", BYTES)],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, NO_COLOR],
        files: &[
            ("FILE.oh-part", "the image until it is complete"),
            ("FILE.ohj", "which chunks of it were received; the same command resumes from it"),
            ("FILE.sha256", "the digest, with --checksum"),
            CONFIG,
            FINDINGS,
        ],
        exit_status: TRANSFER_STATUS,
    }),
    ("publish", Sections {
        examples: &[
            ("Publish an image; the next run sends only what changed",
                "openhosting publish -n nightly disk.img"),
            ("Keep the newest three, and write a receipt",
                "openhosting publish -n nightly --keep 3 --receipt nightly.json disk.img"),
            ("Let all users of the cloud read it",
                "openhosting publish -n base --readers all disk.img"),
            ("Remove what an unfinished run left", "openhosting publish -n nightly --cleanup"),
        ],
        values: &[TIME, ("BYTES", BYTES)],
        environment: &[
            OHURI,
            OHAUTH,
            PROFILE,
            PROXY,
            ("OHSIGNPASSWORD", "password of the key that --sign-key names"),
            STATE_HOME,
            NO_COLOR,
        ],
        files: &[CONFIG, JOURNALS, FINDINGS, RECEIPTS],
        exit_status: TRANSFER_STATUS,
    }),
    ("verify", Sections {
        examples: &[
            ("Compare all of a published drive with its receipt", "openhosting verify nightly.json"),
            ("Compare one percent of it, chosen at random",
                "openhosting verify --sample 1 nightly.json"),
            ("Demand a valid signature of the receipt",
                "openhosting verify --pubkey minisign.pub nightly.json"),
        ],
        values: &[TIME],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, NO_COLOR],
        files: &[("RECEIPT.minisig", "signature of the receipt, with --pubkey"), CONFIG],
        exit_status: VERIFY_STATUS,
    }),
    ("ls", Sections {
        examples: &[
            ("List your drives", "openhosting ls"),
            ("Show whole UUIDs, sizes in bytes and times", "openhosting ls -l"),
            ("Print the names with jq", "openhosting ls -J | jq -r '.drives[].name'"),
        ],
        environment: ACCESS,
        files: &[CONFIG],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("show", Sections {
        examples: &[
            ("Show a drive by its name", "openhosting show web-1"),
            ("Show it by the beginning of its UUID, with all keys", "openhosting show -l 5ce4a7da"),
        ],
        environment: ACCESS,
        files: &[CONFIG],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("rm", Sections {
        examples: &[
            ("Destroy a drive, after a question", "openhosting rm web-1"),
            ("Destroy two drives from a script", "openhosting rm -y 5ce4a7da nightly~1"),
        ],
        environment: ACCESS,
        files: &[CONFIG],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("image-info", Sections {
        examples: &[
            ("Show what an image holds and how much an upload would send",
                "openhosting image info disk.qcow2"),
            ("Draw a map of its data", "openhosting image info --map map.svg disk.img"),
        ],
        values: &[("CHUNK", BYTES)],
        environment: &[PROXY],
        exit_status: IMAGE_STATUS,
        ..NOTHING
    }),
    ("login", Sections {
        examples: &[
            ("Store the profile \"default\", after three questions", "openhosting login"),
            ("Store another one, and use it",
                "openhosting login work && openhosting ls --profile work"),
            ("Store the profile \"default\" in a script, with the key from a variable",
                "printf %s \"$KEY\" | openhosting login --endpoint https://host/ --user UUID"),
        ],
        environment: &[PROXY, CONFIG_HOME],
        files: &[
            CONFIG,
            ("~/.config/openhosting/NAME.key",
                "the credentials of the profile NAME; only you can read it"),
        ],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("doctor", Sections {
        examples: &[
            ("Check everything", "openhosting doctor"),
            ("Check another profile", "openhosting doctor --profile work"),
        ],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, STATE_HOME],
        files: &[CONFIG, JOURNALS],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("api", Sections {
        examples: &[
            ("List the UUIDs of all drives", "openhosting api drives list"),
            ("Show a virtual machine as JSON", "openhosting api -j servers UUID info"),
            ("Change a drive with properties from a file",
                "openhosting api -f properties.txt drives UUID set"),
        ],
        environment: ACCESS,
        files: &[CONFIG],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("probe", Sections {
        examples: &[
            ("Probe the endpoint, and save the findings for later transfers", "openhosting probe"),
            ("Print them as JSON, and save nothing", "openhosting probe -J --no-save"),
        ],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, STATE_HOME],
        files: &[CONFIG, FINDINGS],
        exit_status: CALL_STATUS,
        ..NOTHING
    }),
    ("server", Sections {
        examples: &[
            ("Run a server for this machine", "openhosting server"),
            ("Serve a network, with TLS",
                "openhosting server --listen 192.0.2.7:8463 --tls-self-signed"),
            ("Start it in a script, after: rm -f oh. It waits until the server is ready or has failed; then run: . ./oh",
                "openhosting server >oh & until [ -s oh ] || ! kill -0 $!; do sleep 1; done"),
        ],
        values: &[("BYTES, SIZE", BYTES), RATE],
        environment: &[("XDG_DATA_HOME",
            "directory that contains openhosting-server/ [default: ~/.local/share]")],
        files: &[("~/.local/share/openhosting-server/",
            "drives, virtual machines, and the user that was generated")],
        exit_status: SERVER_STATUS,
    }),
    ("completions", Sections {
        examples: &[
            ("bash, in ~/.bashrc", "source <(openhosting completions bash)"),
            ("zsh, in ~/.zshrc after compinit", "source <(openhosting completions zsh)"),
            ("fish, in ~/.config/fish/config.fish", "openhosting completions fish | source"),
            ("PowerShell, in $PROFILE",
                "openhosting completions powershell | Out-String | Invoke-Expression"),
        ],
        exit_status: LOCAL_STATUS,
        ..NOTHING
    }),
    ("man", Sections {
        examples: &[
            ("Read a page without installing it",
                "openhosting man --page openhosting-upload | man -l -"),
            ("Install all pages for this user", "openhosting man ~/.local/share/man/man1"),
        ],
        exit_status: LOCAL_STATUS,
        ..NOTHING
    }),
    ("version", Sections {
        examples: &[("Print the version, and which files are in use", "openhosting version --verbose")],
        environment: &[CONFIG_HOME, STATE_HOME],
        files: &[CONFIG],
        exit_status: LOCAL_STATUS,
        ..NOTHING
    }),
    ("openhosting", Sections {
        examples: &[
            ("Upload an image to a new drive", "openhosting upload disk.img"),
            ("List the drives, and download one",
                "openhosting ls && openhosting download web-1 copy.img"),
            ("Describe a command", "openhosting help upload"),
        ],
        environment: &[OHURI, OHAUTH, PROFILE, PROXY, STATE_HOME, NO_COLOR],
        files: &[CONFIG, JOURNALS, FINDINGS],
        exit_status: TRANSFER_STATUS,
        ..NOTHING
    }),
];
