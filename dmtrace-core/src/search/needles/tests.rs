use proptest::prelude::*;

use super::*;

const KEY: Key = Key(0x0d4d_beef);

fn find(bytes: &[u8], address: u64) -> Vec<Match> {
    let mut found = Vec::new();
    Needles::new([KEY]).find_all(bytes, address, |it| found.push(it));
    found
}

fn forms(bytes: &[u8], address: u64) -> Vec<Form> {
    find(bytes, address).iter().map(|it| it.form).collect()
}

#[test]
fn binary_forms_are_told_by_the_address() {
    let number = KEY.0.to_le_bytes();
    for (address, form) in [
        (0x1000, Form::Aligned4),
        (0x1002, Form::Aligned2),
        (0x1001, Form::Unaligned),
        (0x1003, Form::Unaligned),
    ] {
        assert_eq!(forms(&number, address), [form], "{address}");
    }
    assert_eq!(forms(&(KEY.0 << 1 | 1).to_le_bytes(), 0), [Form::Tagged]);
    assert_eq!(forms(&(KEY.0 << 1).to_le_bytes(), 0), [Form::Tagged]);
    assert_eq!(forms(&(KEY.0 << 1).to_le_bytes(), 1), []);
    let double = f64::from(KEY.0);
    assert_eq!(forms(&double.to_le_bytes(), 0), [Form::Double]);
    assert_eq!(forms(&(double + 0.5).to_le_bytes(), 0), []);
    assert_eq!(forms(&u64::from(KEY.0).to_le_bytes(), 0), [Form::Aligned4]);
    assert_eq!(forms(&(KEY.0 + 1).to_le_bytes(), 0), [], "another cookie");
    assert_eq!(forms(&number[..3], 0), [], "cut off");
}

#[test]
fn texts() {
    for (text, expected) in [
        ("0xd4dbeef", &[Form::Hex][..]),
        ("0x0d4dbeef\n", &[Form::Hex]),
        ("0X0D4DBEEF", &[Form::Hex]),
        ("d4dbeef", &[Form::Hex]),
        ("key=000000000d4dbeef", &[Form::Hex]),
        ("d4dbeef0", &[]),
        ("ad4dbeef", &[]),
        ("10d4dbeef", &[]),
        ("d4dbeeg", &[]),
        ("223198959", &[Form::Decimal]),
        ("[223198959]", &[Form::Decimal]),
        ("1223198959", &[]),
        ("2231989590", &[]),
        (
            "DM_UDEV_COOKIE=223198959",
            &[Form::CookieVariable, Form::Decimal],
        ),
        (
            "DM_UDEV_COOKIE=0xd4dbeef",
            &[Form::CookieVariable, Form::Hex],
        ),
        ("DM_UDEV_COOKIE=01523337357\0", &[Form::CookieVariable]),
        ("DM_UDEV_COOKIE=", &[]),
        ("DM_COOKIE=4243183\0", &[Form::UeventVariable]),
        ("DM_COOKIE=4243184\0", &[]),
        ("DM_COOKIE=223198959", &[Form::Decimal]),
        ("DM_COOKIE=99999999999999999999999", &[]),
    ] {
        assert_eq!(forms(text.as_bytes(), 0), expected, "{text}");
    }
}

#[test]
fn only_cookies_are_looked_for() {
    let needles = Needles::new([Key(0x1234_5678), KEY]);
    assert_eq!(needles.keys().len(), 1);
    assert!(Needles::new([Key(7)]).is_empty());
}

/// All places at which a form may begin, each looked at by itself.
fn find_slowly(bytes: &[u8], address: u64) -> Vec<Match> {
    let needles = Needles::new([KEY]);
    let mut found = Vec::new();
    for at in 0..bytes.len() {
        needles.scan(bytes, at..at + 1, address, &mut |it| found.push(it));
    }
    found
}

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(KEY.0.to_le_bytes().to_vec()),
        Just((KEY.0 << 1 | 1).to_le_bytes().to_vec()),
        Just(f64::from(KEY.0).to_le_bytes().to_vec()),
        Just(b"0x0d4dbeef".to_vec()),
        Just(b"DM_UDEV_COOKIE=0xd4dbeef\0".to_vec()),
        Just(b"DM_COOKIE=4243183\0".to_vec()),
        Just(b" 223198959 ".to_vec()),
        prop::collection::vec(any::<u8>(), 0..90),
        prop::collection::vec(prop::sample::select(b"0d4D2\x4d\x0d9".to_vec()), 0..20),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn borders_of_pieces_hide_nothing_and_double_nothing(
        bytes in pieces(),
        address in 0..8_u64,
        sizes in prop::collection::vec(1..200_usize, 1..9),
    ) {
        let whole = find(&bytes, address);
        prop_assert_eq!(&whole, &find_slowly(&bytes, address));
        let needles = Needles::new([KEY]);
        let mut window = Window::new(64);
        window.start(address);
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let space = window.space();
            let size = (*size).min(space.len()).min(rest.len());
            space[..size].copy_from_slice(&rest[..size]);
            rest = &rest[size..];
            window.advance(size, &needles, |it| parts.push(it));
        }
        window.finish(&needles, |it| parts.push(it));
        prop_assert_eq!(&whole, &parts);
    }
}

/// `cargo test --release -p dmtrace-core throughput -- --ignored --nocapture`
#[test]
#[ignore = "prints a measurement"]
fn throughput() {
    let needles = Needles::new((1..=128).map(|it| Key(0x0d4d_0000 | (it * 77))));
    let mut state = 1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let random: Vec<u8> = (0..256 << 10).map(|_| random()).collect();
    let zeros = vec![0; 256 << 10];
    for (name, bytes) in [("random", random), ("zeros", zeros)] {
        let begin = std::time::Instant::now();
        let mut count = 0;
        const TIMES: u32 = 8 << 10;
        for _ in 0..TIMES {
            needles.find_all(std::hint::black_box(&bytes), 0, |_| count += 1);
        }
        let gib = f64::from(TIMES) * 256.0 / 1024.0 / 1024.0;
        let rate = gib / begin.elapsed().as_secs_f64();
        println!("{name}: {rate:.2} GiB/s, {count} found");
    }
}
