//! The rules of the house on small crates.

use super::*;

#[test]
fn a_circle_is_found_by_way_of_re_exports() {
    let tree = ModuleTree::from_texts(&[
        ("lib.rs", "mod a;\nmod b;\nmod c;"),
        ("a.rs", "pub use crate::b::Thing as Other;\npub struct A;"),
        ("b.rs", "use crate::c::C;\npub struct Thing(C);"),
        ("c.rs", "pub struct C; pub fn f(_: crate::a::Other) {}"),
    ]);
    assert_eq!(tree.find_circles(), [["b", "c"]]);
}

#[test]
fn what_only_tests_import_is_no_circle() {
    let tree = ModuleTree::from_texts(&[
        ("lib.rs", "mod a;\nmod b;"),
        (
            "a.rs",
            "pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }",
        ),
        ("b.rs", "use crate::a::A;\npub struct B(A);"),
    ]);
    assert_eq!(tree.find_circles(), Vec::<Vec<String>>::new());
}

#[test]
fn an_import_upwards_is_found_in_uses_paths_and_macros() {
    for body in [
        "use crate::high::H;",
        "pub fn f() { crate::high::g(); }",
        "pub fn f() { println!(\"{}\", super::high::g()); }",
    ] {
        let tree = ModuleTree::from_texts(&[
            ("lib.rs", "mod low;\nmod high;"),
            ("low.rs", body),
            ("high.rs", "pub struct H; pub fn g() {}"),
        ]);
        assert_eq!(
            find_climbs(&tree, &[&["low"], &["high"]]).len(),
            1,
            "{body}"
        );
        assert_eq!(
            find_climbs(&tree, &[&["high"], &["low"]]).len(),
            0,
            "{body}"
        );
    }
}

#[test]
fn a_clock_and_a_file_in_the_core_are_found() {
    for (body, count) in [
        ("use std::time::Duration;\npub fn f(_: Duration) {}", 0),
        ("pub fn f() { let _ = std::time::Instant::now(); }", 1),
        (
            "use std::time::{Duration, SystemTime};\npub fn f(_: Duration) {}",
            1,
        ),
        ("use std::fs;\npub fn f() {}", 1),
        ("pub fn f() { println!(\"x\"); }", 1),
        ("use aya::Ebpf;", 1),
    ] {
        let tree = ModuleTree::from_texts(&[("lib.rs", "mod a;"), ("a.rs", body)]);
        assert_eq!(find_impurities(&tree).len(), count, "{body}");
    }
}
