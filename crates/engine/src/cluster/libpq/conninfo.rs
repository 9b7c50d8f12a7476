//! Connection strings, as libpq reads them.

use std::ffi::CStr;
use std::ptr;

use super::c_string;
use super::result::copy_text;

/// Secrets that libpq does not mark as such in all of its versions.
const SECRETS: [&str; 5] = ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// What a string says, without what nobody else may know; nothing is completed from the environment. None: libpq does not understand
/// it, perhaps because it is older than who wrote that.
pub fn without_secrets(text: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let text = c_string(text, "connection string").ok()?;
    let mut said = vec![];
    // SAFETY: the text outlives the call. A message is not asked for. The array, if there is one, ends with a null keyword, its values
    // are null or C strings that are copied at once, and it is freed after the last use.
    unsafe {
        let options = pq_sys::PQconninfoParse(text.as_ptr(), ptr::null_mut());
        if options.is_null() {
            return None;
        }
        let mut at = options;
        while !(*at).keyword.is_null() {
            let keyword = copy_text((*at).keyword).unwrap_or_default();
            let is_secret = copy_text((*at).dispchar).is_some_and(|mark| mark.contains('*'));
            if !(*at).val.is_null() && !is_secret && !SECRETS.contains(&keyword.as_str()) {
                said.push((keyword, CStr::from_ptr((*at).val).to_bytes().to_vec()));
            }
            at = at.add(1);
        }
        pq_sys::PQconninfoFree(options);
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_told_without_its_secrets() {
        let of = |text: &str| {
            without_secrets(text.as_bytes()).map(|mut said| {
                said.sort();
                said.iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(v))).collect::<Vec<_>>()
            })
        };
        let expected = ["dbname=a b", "host=h", "user=u"].map(str::to_owned).to_vec();
        let pairs = "user=u password='it\\'s' dbname = 'a b' sslpassword=x host=h";
        assert_eq!(of(pairs).as_ref(), Some(&expected));
        assert_eq!(of("postgresql://u:secret@h/a%20b?sslpassword=x"), Some(expected));
        assert_eq!(of(""), Some(vec![]));
        for wrong in ["host", "nothing=1", "host='x", "a\0b"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
