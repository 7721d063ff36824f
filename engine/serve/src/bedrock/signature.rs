//! Owns the check of requests signed with AWS Signature Version 4: the secret key is one of the server's keys, the access key
//! id may be any, the service is `bedrock`. Knows no body but its digest.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use sha2::{Digest, Sha256};

use crate::app::Server;
use crate::calendar::unix_seconds_of;
use crate::error::ApiError;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "bedrock";
/// How far a client's clock may be off.
const SKEW_SECONDS: u64 = 5 * 60;

/// The URI as it was sent, which is what was signed.
#[derive(Clone)]
pub struct Sent(pub Uri);

pub fn is_signed(headers: &HeaderMap) -> bool {
    authorization(headers).is_some()
}

/// Lets a request through whose signature is right.
///
/// # Errors
/// 403 when it is not, and what the reading of its body may fail with.
pub async fn verify(server: &Server, request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let mut claim = authorization(&parts.headers).and_then(Claim::read).ok_or_else(|| refused("cannot be read"))?;
    let time = parts.headers.get("x-amz-date").and_then(|value| value.to_str().ok());
    claim.time = time.unwrap_or_default().to_owned();
    claim.check_scope(server.now())?;
    let body = server.app.limits.read_body(body).await?;
    let digest = hex(&Sha256::digest(&body));
    if parts.headers.get("x-amz-content-sha256").is_some_and(|sent| sent.as_bytes() != digest.as_bytes()) {
        return Err(refused("is for another body"));
    }
    let sent = parts.extensions.get::<Sent>().map_or(&parts.uri, |sent| &sent.0);
    let canonical = canonical(&parts.method, sent, &parts.headers, &claim.signed_headers, &digest)
        .ok_or_else(|| refused("names a header that is not there"))?;
    let sign = |secret: &[u8]| claim.signature(secret, &canonical).into_bytes();
    if !server.app.keys.signed(claim.signature.as_bytes(), sign) {
        return Err(refused("does not match: check the secret key"));
    }
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn refused(fault: &str) -> ApiError {
    let message = format!("The signature of the request {fault}.");
    let error = ApiError::new(StatusCode::FORBIDDEN, "authentication_error", message);
    ApiError { code: Some("invalid_signature"), ..error }
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix(ALGORITHM)
}

/// What a signed request says of its signature.
struct Claim {
    day: String,
    region: String,
    service: String,
    signed_headers: Vec<String>,
    signature: String,
    /// Of `x-amz-date`.
    time: String,
}

impl Claim {
    /// `Credential=ID/DAY/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=HEX`
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| text.split(',').find_map(|part| part.trim().strip_prefix(name));
        let mut credential = field("Credential=")?.rsplitn(5, '/');
        if credential.next()? != "aws4_request" {
            return None;
        }
        let mut next = || credential.next().map(str::to_owned);
        let (service, region, day) = (next()?, next()?, next()?);
        let signed_headers = field("SignedHeaders=")?.split(';').map(str::to_ascii_lowercase).collect();
        let signature = field("Signature=")?.to_owned();
        Some(Self { day, region, service, signed_headers, signature, time: String::new() })
    }

    /// Refuses a request that is not of now or not for this service.
    fn check_scope(&self, now: u64) -> Result<(), ApiError> {
        let seconds = unix_seconds_of(&self.time).ok_or_else(|| refused("needs the header x-amz-date"))?;
        if !self.time.starts_with(&self.day) || seconds.abs_diff(now) > SKEW_SECONDS {
            return Err(refused("has expired or is of a clock that is wrong"));
        }
        if self.service != SERVICE {
            return Err(refused("is for another service than 'bedrock'"));
        }
        Ok(())
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.day, self.region, self.service)
    }

    fn key(&self, secret: &[u8]) -> [u8; 32] {
        let parts = [self.day.as_str(), &self.region, &self.service, "aws4_request"];
        let mut key = [b"AWS4".as_slice(), secret].concat();
        for part in parts {
            key = hmac(&key, part.as_bytes()).to_vec();
        }
        key.try_into().expect("a digest of 32 bytes: this is a bug")
    }

    fn signature(&self, secret: &[u8], canonical: &str) -> String {
        let digest = hex(&Sha256::digest(canonical));
        let text = format!("{ALGORITHM}\n{}\n{}\n{digest}", self.time, self.scope());
        hex(&hmac(&self.key(secret), text.as_bytes()))
    }
}

/// The request as it is signed; `None` when a signed header is not there.
fn canonical(method: &Method, uri: &Uri, headers: &HeaderMap, signed: &[String], digest: &str) -> Option<String> {
    let mut query: Vec<(&str, &str)> = uri
        .query()
        .into_iter()
        .flat_map(|q| q.split('&'))
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    query.sort_unstable();
    let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut lines = String::new();
    for name in signed {
        let values: Vec<String> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        if values.is_empty() {
            return None;
        }
        lines += &format!("{name}:{}\n", values.join(","));
    }
    let path = encoded(uri.path());
    Some(format!("{method}\n{path}\n{}\n{lines}\n{}\n{digest}", query.join("&"), signed.join(";")))
}

/// A path percent-encoded once more than it was sent.
fn encoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// HMAC with SHA-256, RFC 2104.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    match key.len() {
        0..=BLOCK => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn claim(service: &str) -> Claim {
        let text = format!(
            " Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, SignedHeaders=host;x-amz-date, Signature=00"
        );
        Claim { time: "20150830T123600Z".into(), ..Claim::read(&text).expect("a claim") }
    }

    /// RFC 4231, cases 2 and 6.
    #[test]
    fn hmac_is_the_standards() {
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&hmac(b"Jefe", b"what do ya want for nothing?")), wanted);
        let wanted = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")), wanted);
    }

    /// The example of AWS's documentation, and `get-vanilla` of its test suite.
    #[test]
    fn keys_and_signatures_are_those_of_the_examples() {
        let wanted = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(hex(&claim("iam").key(SECRET)), wanted);
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        let headers: HeaderMap =
            headers.iter().map(|(n, v)| (n.parse().expect("a name"), v.parse().expect("a value"))).collect();
        let claim = claim("service");
        let canonical = canonical(
            &Method::GET,
            &Uri::from_static("/"),
            &headers,
            &claim.signed_headers,
            &hex(&Sha256::digest(b"")),
        );
        let wanted = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        assert_eq!(claim.signature(SECRET, &canonical.expect("all headers are there")), wanted);
    }

    #[test]
    fn a_path_is_encoded_once_more() {
        assert_eq!(encoded("/model/a.b-v1%3A0/converse"), "/model/a.b-v1%253A0/converse");
    }

    #[test]
    fn a_claim_is_of_now_and_for_this_service() {
        // 2015-08-30T12:36:00Z
        let then = 1_440_938_160;
        assert!(claim("bedrock").check_scope(then + 299).is_ok() && claim("bedrock").check_scope(then - 299).is_ok());
        assert!(claim("bedrock").check_scope(then + 301).is_err() && claim("s3").check_scope(then).is_err());
        assert!(Claim::read(" Credential=a/b/c, Signature=x").is_none() && Claim::read("").is_none());
    }
}
