//! Checks PEM files for TLS when they are read. Otherwise a bad file would look like a fault of the
//! server.

use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// What a file must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemContent {
    Certificates,
    PrivateKey,
}

/// Says what is wrong with a file that the setting `key` names, and what to do.
pub fn check(key: &str, path: &Path, bytes: &[u8], content: PemContent) -> Result<(), String> {
    match objection(bytes, content) {
        Some(reason) => Err(format!("{key} names {}, which {reason}", path.display())),
        None => Ok(()),
    }
}

fn objection(bytes: &[u8], content: PemContent) -> Option<&'static str> {
    let has = |label: &str| bytes.windows(label.len()).any(|window| window == label.as_bytes());
    let has_certificates =
        CertificateDer::pem_slice_iter(bytes).next().is_some_and(|read| read.is_ok());
    let has_key = PrivateKeyDer::from_pem_slice(bytes).is_ok();
    Some(match content {
        PemContent::Certificates if has_certificates => return None,
        PemContent::PrivateKey if has_key => return None,
        _ if bytes.trim_ascii().is_empty() => "is empty",
        _ if bytes.starts_with(b"\xef\xbb\xbf") => {
            "begins with a byte-order mark; write it anew without that mark"
        }
        _ if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) => {
            "is UTF-16; write it anew as plain text"
        }
        // DER begins with this byte, and so does PKCS#12.
        _ if bytes.first() == Some(&0x30) => {
            "is not PEM; convert it, from PKCS#12 with `openssl pkcs12 -in FILE -nodes -out \
                NEW.pem`, from DER with `openssl x509 -inform der`"
        }
        PemContent::PrivateKey if has("ENCRYPTED") => {
            "has an encrypted key; nobody can enter its password here, so write it without one: \
                `openssl pkey -in FILE -out NEW.key`"
        }
        PemContent::PrivateKey if has_certificates => {
            "has a certificate and no private key; are the two files swapped?"
        }
        PemContent::Certificates if has_key || has("PRIVATE KEY") => {
            "has a private key and no certificate; are the two files swapped?"
        }
        PemContent::Certificates => {
            "has no certificate that can be read: a PEM file has lines `-----BEGIN \
                CERTIFICATE-----`"
        }
        PemContent::PrivateKey => {
            "has no private key that can be read: a PEM file has lines `-----BEGIN PRIVATE \
                KEY-----`"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_has_its_sentence() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let marked = format!("\u{feff}{certificate}");
        let der = made.cert.der().to_vec();
        let (certificates, private_key) = (PemContent::Certificates, PemContent::PrivateKey);
        for (bytes, content, told) in [
            (b"\n".as_slice(), certificates, "is empty"),
            (b"", private_key, "is empty"),
            (marked.as_bytes(), certificates, "byte-order mark"),
            (&der, certificates, "is not PEM"),
            (&der, private_key, "is not PEM"),
            (encrypted.as_bytes(), private_key, "openssl pkey"),
            (certificate.as_bytes(), private_key, "swapped"),
            (key.as_bytes(), certificates, "swapped"),
            (
                b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n",
                certificates,
                "BEGIN CERTIFICATE",
            ),
            (b"my authority", certificates, "BEGIN CERTIFICATE"),
            (b"my key", private_key, "BEGIN PRIVATE KEY"),
        ] {
            let error = check("broker.ca_file", Path::new("file.pem"), bytes, content).unwrap_err();
            assert!(
                error.starts_with("broker.ca_file names file.pem, which") && error.contains(told),
                "{told}: {error}"
            );
        }
        assert_eq!(check("k", Path::new("f"), certificate.as_bytes(), certificates), Ok(()));
        assert_eq!(check("k", Path::new("f"), key.as_bytes(), private_key), Ok(()));
    }
}
