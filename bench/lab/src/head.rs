//! The little of HTTP/1.1 heads (RFC 9112) that the lab's server and load need: where a head ends, its first line, and
//! two header fields. Pure.

/// Heads longer than this are refused.
pub(crate) const MAX_HEAD: usize = 8 * 1024;

/// Length of the head including its empty line, once it is complete.
pub(crate) fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).take(MAX_HEAD).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a field, by its lower-case name.
pub(crate) fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|&b| b == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        line[..colon].eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
    })
}

/// A decimal number at the start of `bytes`, and what follows it.
pub(crate) fn decimal(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let number = std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()?;
    Some((number, &bytes[digits..]))
}

/// `Content-Length`, 0 without the field; none when it is no number.
pub(crate) fn content_length(head: &[u8]) -> Option<u64> {
    match field(head, "content-length") {
        None => Some(0),
        Some(value) => decimal(value).filter(|(_, rest)| rest.is_empty()).map(|(n, _)| n),
    }
}

/// The id in `METHOD /id/N...`.
pub(crate) fn request_id(head: &[u8]) -> Option<u64> {
    let space = head.iter().position(|&b| b == b' ')?;
    let rest = head[space + 1..].strip_prefix(b"/id/")?;
    decimal(rest).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &[u8] =
        b"POST /id/42?x HTTP/1.1\r\nHost: a\r\nCONTENT-length: 17\r\nConnection: close\r\n\r\nbody";

    #[test]
    fn a_request_is_understood() {
        let len = head_len(POST).unwrap();
        assert_eq!(&POST[len..], b"body");
        let head = &POST[..len];
        assert_eq!(request_id(head), Some(42));
        assert_eq!(content_length(head), Some(17));
        assert_eq!(field(head, "connection"), Some(&b"close"[..]));
        assert_eq!(field(head, "expect"), None);
    }

    #[test]
    fn half_a_head_and_nonsense_are_not() {
        assert_eq!(head_len(b"GET /id/1 HTTP/1.1\r\nHost: a\r\n"), None);
        assert_eq!(request_id(b"GET / HTTP/1.1\r\n\r\n"), None);
        assert_eq!(request_id(b"GET"), None);
        assert_eq!(content_length(b"x\r\nContent-Length: 1x\r\n\r\n"), None);
    }
}
