//! Certificates of an authority that the tests create.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// PEM files: the authority's certificate, and certificates with keys for the server and for a
/// client.
pub struct Certificates(TempDir);

/// Whether the server's certificate is still valid.
#[derive(Clone, Copy, PartialEq)]
pub enum Validity {
    Now,
    Over,
}

impl Certificates {
    pub fn make() -> Certificates {
        Certificates::of_server(&["localhost", "127.0.0.1"], Validity::Now)
    }

    /// Like [`Certificates::make`], with a server certificate for these names only.
    pub fn of_server(names: &[&str], validity: Validity) -> Certificates {
        let folder = tempfile::Builder::new()
            .prefix("groupcast-certificates-")
            .tempdir()
            .expect("a scratch folder");
        let mut params = params(Vec::new(), "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("a file");
        for (name, purpose) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let key = KeyPair::generate().expect("a key");
            let names = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = self::params(names, name);
            if validity == Validity::Over {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &authority).expect("a certificate");
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate.pem())
                .expect("a file");
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem())
                .expect("a file");
        }
        Certificates(folder)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    /// The settings of a configuration that use these files.
    pub fn keys(&self) -> String {
        let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"]
            .map(|name| self.file(name).display().to_string());
        format!("ca_file = \"{ca}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"")
    }
}

fn params(names: Vec<String>, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("parameters");
    // Names must differ: a certificate with its authority's name would count as self-signed.
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
