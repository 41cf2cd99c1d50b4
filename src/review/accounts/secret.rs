//! Secrets: passwords and what proves a session, a token or a link.
//!
//! Thread: pure functions; [`hash`] and [`verify`] take tens of milliseconds and [`MEMORY_KIB`], so they run off the server's
//! thread, a bounded number at once ([`Desk`](super::Desk)).
//!
//! Invariants:
//! 1. A password is kept as argon2id with the parameters below, each with a salt of its own. Test: `passwords`.
//! 2. A token has 256 bits from the operating system. Test: `tokens_differ`.

use argon2::password_hash::rand_core::{OsRng, RngCore};
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::LOCAL;
use crate::error::{Context, Error, Result};
use crate::hex::sha256;

/// Memory and passes of argon2id, one lane: the first choice of OWASP's Password Storage Cheat Sheet.
pub const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// Characters of a password.
pub const PASSWORD: (usize, usize) = (12, 256);
/// Characters of a name of an account or a token.
pub const MAX_NAME: usize = 64;
/// How a token begins, so that people and scanners of secrets know what they see.
pub const TOKEN_PREFIX: &str = "lst_";

fn argon2() -> Result<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None);
    let params = params.map_err(|e| Error::failed(format!("argon2 does not take its parameters: {e}")))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).failed(|| "the operating system gives no random numbers")?;
    Ok(bytes)
}

/// The password as it may be kept. Blocks.
pub fn hash(password: &str) -> Result<String> {
    let cannot = |e| Error::failed(format!("cannot hash a password: {e}"));
    let salt = SaltString::encode_b64(&random()?[..16]).map_err(cannot)?;
    Ok(argon2()?.hash_password(password.as_bytes(), &salt).map_err(cannot)?.to_string())
}

/// Whether it is the password. Blocks.
pub fn verify(password: &str, kept: &str) -> bool {
    let (Ok(argon2), Ok(kept)) = (argon2(), PasswordHash::new(kept)) else { return false };
    argon2.verify_password(password.as_bytes(), &kept).is_ok()
}

/// Something nobody can guess.
pub fn token() -> Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random()?))
}

/// A token as it may be kept: 256 random bits need no salt and no slow hash.
pub fn digest(token: &str) -> String {
    sha256(token)
}

/// Refuses a password that is too short, too long or the name.
pub fn check_password(name: &str, password: &str) -> Result<()> {
    let length = password.chars().count();
    if length < PASSWORD.0 || length > PASSWORD.1 {
        let (least, most) = PASSWORD;
        return Err(Error::usage(format!("a password must have between {least} and {most} characters"))
            .hint("several words that only you would put together are easy to remember"));
    }
    if password.to_lowercase().contains(&name.to_lowercase()) && name.chars().count() * 2 > length {
        return Err(Error::usage("the password is little more than the name"));
    }
    Ok(())
}

/// Refuses a name of an account or a token that could be taken for something else.
pub fn check_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
    if length == 0 || length > MAX_NAME || !name.chars().all(plain) {
        return Err(Error::usage(format!(
            "the name {:?} must have between 1 and {MAX_NAME} letters, digits or . _ - @ +",
            name.chars().take(MAX_NAME).collect::<String>()
        )));
    }
    if name.eq_ignore_ascii_case(LOCAL) {
        return Err(Error::usage(format!("the name \"{LOCAL}\" is that of a server without accounts")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords() {
        let (one, two) = (hash("correct horse").unwrap(), hash("correct horse").unwrap());
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, two);
        assert!(verify("correct horse", &one) && verify("correct horse", &two));
        assert!(!verify("correct horsf", &one) && !verify("", &one) && !verify("correct horse", "plain"));
        let table =
            [("eve", "short", false), ("eve", "long enough 12", true), ("longlonglong", "LongLongLong1", false)];
        for (name, password, wanted) in table {
            assert_eq!(check_password(name, password).is_ok(), wanted, "{name} {password}");
        }
        assert!(check_password("eve", &"x".repeat(257)).is_err());
    }

    #[test]
    fn tokens_differ() {
        let (one, two) = (token().unwrap(), token().unwrap());
        assert_eq!(URL_SAFE_NO_PAD.decode(&one).unwrap().len(), 32);
        assert_ne!(one, two);
        assert_eq!(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn names() {
        for good in ["eve", "Müller", "line-3.plant_2", "a@b.example", "7"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "local", "LOCAL", "a b", "a\nb", "<b>", "a/b", "a\u{202e}b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
