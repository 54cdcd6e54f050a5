//! A flame graph: a picture of stacks in which a call is as wide as there are cookies below it.
//! Without scripts, so that a mail or a ticket shows it, too; a browser tells a call's name and
//! number under the pointer.

use std::fmt::{self, Write as _};

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const ROW: f64 = 17.0;
const HEADER: f64 = 40.0;
/// Of a character of the font, generously.
const CHARACTER: f64 = 7.3;
/// Narrower ones cannot be seen.
const NARROWEST: f64 = 0.1;

/// One call, or calls of the same name from the same place.
#[derive(Debug, PartialEq)]
struct FlameFrame<'a> {
    name: &'a str,
    depth: usize,
    /// Cookies to the left of it.
    from: usize,
    /// Cookies to the left of its end.
    to: usize,
}

/// Draws stacks, each from the outermost call to the innermost and with a number of cookies.
pub(super) fn draw_svg(title: &str, stacks: &[(Vec<&str>, usize)]) -> String {
    let frames = merge_frames(stacks);
    let all = frames.iter().map(|frame| frame.to).max().unwrap_or(0);
    let rows = frames
        .iter()
        .map(|frame| frame.depth + 1)
        .max()
        .unwrap_or(0);
    let height = HEADER + ROW * rows as f64 + MARGIN;
    let mut out = String::new();
    // Into a string: cannot fail.
    let _infallible = write_document(&mut out, title, &frames, all, height);
    out
}

fn write_document(
    out: &mut String,
    title: &str,
    frames: &[FlameFrame<'_>],
    all: usize,
    height: f64,
) -> fmt::Result {
    writeln!(
        out,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{}" y="24" text-anchor="middle" font-size="17">{}</text>"#,
        WIDTH / 2.0,
        escape_xml(title)
    )?;
    let scale = (WIDTH - 2.0 * MARGIN) / all.max(1) as f64;
    for frame in frames {
        let count = frame.to - frame.from;
        let width = count as f64 * scale;
        if width < NARROWEST {
            continue;
        }
        let x = MARGIN + frame.from as f64 * scale;
        let y = height - MARGIN - ROW * (frame.depth + 1) as f64;
        let name = escape_xml(frame.name);
        let cookies = if count == 1 { "cookie" } else { "cookies" };
        let share = 100.0 * count as f64 / all.max(1) as f64;
        writeln!(
            out,
            r#"<g><title>{name} ({count} {cookies}, {share:.1}%)</title><rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{:.1}" rx="2" fill="{}" stroke="white" stroke-width="0.5"/><text x="{:.1}" y="{:.1}">{}</text></g>"#,
            ROW - 1.0,
            warm_colour(frame.name),
            x + 3.0,
            y + 12.0,
            escape_xml(&fitting_text(frame.name, width))
        )?;
    }
    writeln!(out, "</svg>")
}

/// Calls of the same name from the same place become one: in order, they stand side by side.
fn merge_frames<'a>(stacks: &[(Vec<&'a str>, usize)]) -> Vec<FlameFrame<'a>> {
    let mut stacks: Vec<_> = stacks.iter().collect();
    stacks.sort();
    let mut frames: Vec<FlameFrame<'a>> = Vec::new();
    // Those of the stack before, as places in `frames`, outermost first.
    let mut open: Vec<usize> = Vec::new();
    let mut from = 0;
    for (names, count) in stacks {
        let to = from + count;
        let before = open.iter().map(|&place| frames[place].name);
        let shared = before.zip(names).take_while(|(a, b)| a == *b).count();
        open.truncate(shared);
        for &place in &open {
            frames[place].to = to;
        }
        for (depth, &name) in names.iter().enumerate().skip(shared) {
            open.push(frames.len());
            frames.push(FlameFrame {
                name,
                depth,
                from,
                to,
            });
        }
        from = to;
    }
    frames
}

/// As much of a name as there is room for.
fn fitting_text(name: &str, width: f64) -> String {
    let room = ((width - 6.0) / CHARACTER).max(0.0) as usize;
    if name.chars().count() <= room {
        return name.to_owned();
    }
    if room < 3 {
        return String::new();
    }
    name.chars().take(room - 2).chain("..".chars()).collect()
}

/// A warm colour, the same for the same name.
fn warm_colour(name: &str) -> String {
    let hash = crc32fast::hash(name.as_bytes());
    let part = |shift: u32, span: u32| (hash >> shift & 0xff) * span / 0xff;
    format!(
        "rgb({},{},{})",
        205 + part(0, 50),
        80 + part(8, 130),
        part(16, 55)
    )
}

/// As XML takes it, which has no control characters.
fn escape_xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_from_the_same_place_are_one_frame() {
        let stacks = [
            (vec!["lvm", "main", "remove"], 1),
            (vec!["lvm top"], 1),
            (vec!["lvm"], 4),
            (vec!["lvm", "main", "create"], 3),
            (vec!["dmsetup", "main"], 2),
        ];
        let found: Vec<_> = merge_frames(&stacks)
            .iter()
            .map(|it| (it.name, it.depth, it.to - it.from))
            .collect();
        let wanted = [
            ("dmsetup", 0, 2),
            ("main", 1, 2),
            ("lvm", 0, 8),
            ("main", 1, 4),
            ("create", 2, 3),
            ("remove", 2, 1),
            ("lvm top", 0, 1),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_hostile_name_stays_text() {
        let name = "</title><script>alert('1')</script>\u{1}\u{ffff}&";
        let drawn = draw_svg(name, &[(vec![name], 1)]);
        assert!(!drawn.contains("<script"), "{drawn}");
        assert!(!drawn.contains(['\u{1}', '\u{ffff}']), "{drawn}");
        assert_eq!(drawn.matches("<title>").count(), 1);
        assert_eq!(drawn.matches("</title>").count(), 1);
    }

    #[test]
    fn what_is_drawn_is_inside_the_picture() {
        let names = ["a_long_name_of_a_function"; 300];
        let deep = draw_svg("deep", &[(names.to_vec(), 1), (vec!["b"], 1_000_000)]);
        for part in deep.split("<rect ").skip(2) {
            let number = |name: &str| -> f64 {
                let rest = part.split_once(&format!("{name}=\"")).unwrap().1;
                rest.split_once('"').unwrap().0.parse().unwrap()
            };
            assert!(number("x") >= 0.0 && number("y") >= 0.0, "{part}");
            assert!(number("x") + number("width") <= WIDTH, "{part}");
        }
        assert!(draw_svg("none", &[]).ends_with("</svg>\n"));
    }
}
