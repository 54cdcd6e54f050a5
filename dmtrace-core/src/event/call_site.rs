//! A call site as plain data: what recordings and other processes get.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The identity of a build, as the linker has written it into the file.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(String);

impl BuildId {
    /// From its bytes; `None` for what is no build-id.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 2 && bytes.len() <= 64)
            .then(|| Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// As hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Directory and file below `.build-id`; `None` for one that a recording has made up.
    pub fn path_parts(&self) -> Option<(&str, &str)> {
        let hex = self.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex && self.0.len() > 2).then(|| self.0.split_at(2))
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Frames that are kept, the innermost ones.
pub const MAX_FRAMES: usize = 128;

/// The chain of calls that led to a cookie, innermost first.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct CallSite {
    /// The calls; the first frame is the one that made the system call.
    pub frames: Vec<CallFrame>,
    /// Programs and libraries that the frames are in.
    pub modules: Vec<Module>,
    /// Whether that is all of it.
    pub end: ChainEnd,
    /// Inode number of the mount namespace that the paths are in; 0 if not known.
    #[serde(default)]
    pub mnt_ns: u32,
}

/// One call.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct CallFrame {
    /// Index into [`CallSite::modules`]; `None` for an address in no file.
    pub module: Option<usize>,
    /// Address of the next instruction: as in the file (`readelf -s`), or in memory without one.
    pub address: u64,
    /// How it was found.
    pub how: FrameSource,
    /// Functions at the address, the innermost of inlined ones first; empty until resolved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<Symbol>,
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameSource {
    /// By the registers or the binary's unwind information.
    Observed,
    /// By the frame pointer, or by a return address on the stack: the binary has no unwind
    /// information for the frame before.
    Inferred,
}

/// A program or library.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// Its path as the process knew it; empty if that is not known.
    pub path: String,
    /// Its build-id, if it has one and it could be read.
    pub build_id: Option<BuildId>,
}

impl Module {
    /// The last component of the path.
    pub fn name(&self) -> &str {
        match self.path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => "?",
        }
    }
}

/// A function.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Symbol {
    /// Its name, as in the source.
    pub function: String,
    /// Source file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// Whether the chain is complete.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainEnd {
    /// Up to the first function of the thread.
    Complete,
    /// Frames are missing at the outer end, for this reason.
    Truncated(String),
}

impl Default for ChainEnd {
    fn default() -> Self {
        Self::Truncated("nothing was captured".to_owned())
    }
}

impl CallSite {
    /// As `report --json` and `list --json` show it.
    pub fn to_json(&self) -> Value {
        let frames = self.frames.iter().map(|frame| {
            let module = self.frame_module(frame);
            json!({
                "module": module.map(|module| &module.path),
                "build_id": module.and_then(|module| module.build_id.as_ref()),
                "address": format!("{:#x}", frame.address),
                "how": frame.how,
                "functions": frame.symbols,
            })
        });
        json!({
            "line": self.chain_line(),
            "complete": self.end == ChainEnd::Complete,
            "truncated": match &self.end {
                ChainEnd::Complete => None,
                ChainEnd::Truncated(why) => Some(why),
            },
            "frames": frames.collect::<Vec<_>>(),
        })
    }

    /// The module of a frame.
    pub fn frame_module(&self, frame: &CallFrame) -> Option<&Module> {
        self.modules.get(frame.module?)
    }

    /// Names of the calls, outermost first, inlined ones included: a line of a folded stack. A
    /// chain that is not complete begins with `[truncated]`.
    pub fn folded_stack(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.end != ChainEnd::Complete {
            names.push("[truncated]".to_owned());
        }
        for frame in self.frames.iter().rev() {
            if frame.symbols.is_empty() {
                names.push(self.frame_location(frame));
            } else {
                let functions = frame.symbols.iter().rev();
                names.extend(functions.map(|symbol| symbol.function.clone()));
            }
        }
        names
    }

    /// The whole chain, one line for each call, innermost first; the last line says why it ends
    /// where it is not complete.
    pub fn chain_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for frame in &self.frames {
            let inferred = match frame.how {
                FrameSource::Observed => "",
                FrameSource::Inferred => "  (inferred)",
            };
            if frame.symbols.is_empty() {
                lines.push(format!("{}{inferred}", self.frame_location(frame)));
            }
            let last = frame.symbols.len().saturating_sub(1);
            for (index, symbol) in frame.symbols.iter().enumerate() {
                let inlined = if index < last { "  (inlined)" } else { "" };
                let module = self.frame_module(frame).map_or("?", Module::name);
                lines.push(format!("{symbol}  {module}{inlined}{inferred}"));
            }
        }
        if let ChainEnd::Truncated(why) = &self.end {
            lines.push(format!("truncated: {why}"));
        }
        lines
    }

    /// The chain in one line: functions, innermost first; `...` where it is not complete.
    pub fn chain_line(&self) -> String {
        let mut names = self.folded_stack();
        if self.end != ChainEnd::Complete {
            names.remove(0);
        }
        names.reverse();
        if let ChainEnd::Truncated(why) = &self.end {
            if names.is_empty() {
                return format!("truncated: {why}");
            }
            names.push("...".to_owned());
        }
        names.join(" < ")
    }

    /// A frame without a name: its file and the address in it.
    fn frame_location(&self, frame: &CallFrame) -> String {
        match self.frame_module(frame) {
            Some(module) => format!("{}+{:#x}", module.name(), frame.address),
            None => format!("{:#x}", frame.address),
        }
    }

    /// Drops the outermost frames beyond `most`, and says so.
    pub fn truncate(&mut self, most: usize) {
        if self.frames.len() > most {
            self.frames.truncate(most);
            self.end =
                ChainEnd::Truncated(format!("calls beyond the innermost {most} are not kept"));
        }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.function)?;
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "  {file}:{line}"),
            (Some(file), None) => write!(f, "  {file}"),
            _ => Ok(()),
        }
    }
}
