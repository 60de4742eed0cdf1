//! How an error of the system reads inside a sentence.

use std::io;

/// The system's message, lower case and without its number.
pub fn of_io(error: &io::Error) -> String {
    let text = plain(&error.to_string());
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => error.kind().to_string(),
    }
}

/// A sentence without the numbers that the system's messages end with: `File exists (os error 17)` → `File exists`.
pub fn plain(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-'));
    rest.fold(first.to_owned(), |whole, part| whole + part.strip_prefix(')').unwrap_or(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_a_part_of_a_sentence() {
        assert_eq!(of_io(&io::Error::from_raw_os_error(13)), "permission denied");
        assert_eq!(of_io(&io::Error::other("Fits not")), "fits not");
        let two = "a cannot be (File exists (os error 17)), nor b: No such file (os error 2)";
        assert_eq!(plain(two), "a cannot be (File exists), nor b: No such file");
        assert_eq!(plain("nothing of it"), "nothing of it");
    }
}
