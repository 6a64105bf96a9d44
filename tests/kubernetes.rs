//! The Helm chart, and the manifest made from it. Kubernetes accepts them, and the program accepts
//! the files that they mount.

use std::{fs, process::Command};

use groupcast::config::{Config, ConfigFile};
use serde_json::{Value, json};

/// Renders the chart with these values, with Helm's engine. tests/tools.sh installs it as a Python
/// package.
const HELM: &str = r#"
import json, sys
sys.path.insert(0, "target/kubernetes")
import helm_python as helm
name, values = sys.argv[1], helm.values_from_yaml(sys.argv[2])
chart = {"faults": [message for message in helm.lint("deploy/helm", values)["messages"] if message["severity"] > 1]}
try:
    texts = [text for text in helm.Chart.load("deploy/helm").render(values, name=name).values() if text.strip()]
    objects = [helm.values_from_yaml(text) for text in texts]
    chart |= {"texts": texts, "objects": {object["kind"]: object for object in objects}}
except helm.HelmValuesError as refusal:
    chart["refusal"] = str(refusal)
print(json.dumps(chart))
"#;

/// Renders the chart as a release of this name. Returns `texts` and `objects` by kind, or
/// `refusal`, and the linter's findings as `faults`.
fn chart(name: &str, values: &str) -> Value {
    let output =
        Command::new("/usr/bin/python3").args(["-c", HELM, name, values]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "Helm's engine is there; tests/run.sh installs it: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_manifest_is_the_chart_with_its_values_as_they_are() {
    let path = "deploy/kubernetes/groupcast.yaml";
    let written = fs::read_to_string(path).unwrap();
    let head: String = written
        .lines()
        .take_while(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    let chart = chart("groupcast", "");
    let objects = chart["texts"].as_array().unwrap().iter().map(|text| {
        // The manifest has no checksum, because a manual edit would not update it.
        let lines = text
            .as_str()
            .unwrap()
            .trim()
            .lines()
            .filter(|line| !line.contains("checksum/config: "));
        lines.map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    });
    let expected = head + &objects.collect::<Vec<_>>().join("---\n");
    #[expect(clippy::disallowed_methods, reason = "of the test, not of the program")]
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    if update {
        return fs::write(path, expected).unwrap();
    }
    let differs = written.lines().zip(expected.lines()).find(|(written, made)| written != made);
    assert!(
        written == expected,
        "{path} is not what deploy/helm makes (first difference: {differs:?}); write it anew \
            with\n  UPDATE_DOCUMENTS=1 tests/run.sh --test promises kubernetes::the_manifest"
    );
}

#[test]
fn the_chart_has_no_faults_and_makes_what_kubernetes_takes() {
    let schemas = fs::read_to_string("target/kubernetes/schemas.json")
        .expect("they are there; tests/run.sh installs them");
    let schemas: Value = serde_json::from_str(&schemas).unwrap();
    for values in ["", "{ imagePullSecrets: [registry] }"] {
        let chart = chart("groupcast", values);
        assert_eq!(chart["faults"], json!([]));
        let objects = chart["objects"].as_object().unwrap();
        let kinds: Vec<&str> = objects.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget"]);
        for (kind, object) in objects {
            let api = object["apiVersion"].as_str().unwrap();
            let (group, version) = api.split_once('/').unwrap_or(("", api));
            let meant = json!([{ "group": group, "kind": kind, "version": version }]);
            let definitions = schemas["$defs"].as_object().unwrap();
            let (name, _) = definitions
                .iter()
                .find(|(_, definition)| definition["x-kubernetes-group-version-kind"] == meant)
                .unwrap_or_else(|| panic!("Kubernetes has no {api} {kind}"));
            let mut schema = schemas.clone();
            schema["$ref"] = format!("#/$defs/{name}").into();
            let validator = jsonschema::validator_for(&schema).unwrap();
            let faults: Vec<String> = validator
                .iter_errors(object)
                .map(|fault| format!("{}: {fault}", fault.instance_path()))
                .collect();
            assert!(faults.is_empty(), "{kind}: {faults:?}");
        }
    }
}

#[test]
fn pods_have_no_more_rights_than_they_need_and_are_those_that_the_other_objects_mean() {
    let chart = chart("orders", "");
    let objects = &chart["objects"];
    let template = &objects["Deployment"]["spec"]["template"];
    for (object, selector) in [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Deployment", "/spec/template/spec/topologySpreadConstraints/0/labelSelector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
    ] {
        assert_eq!(
            objects[object].pointer(selector),
            Some(&template["metadata"]["labels"]),
            "{object}"
        );
    }
    let container = &template["spec"]["containers"][0];
    assert_eq!(
        container["securityContext"],
        json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } })
    );
    assert_eq!(template["spec"]["securityContext"]["runAsNonRoot"], true);
    assert_eq!(template["spec"]["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(template["spec"]["automountServiceAccountToken"], false);
    assert_eq!(container["livenessProbe"]["httpGet"], json!({ "path": "/livez", "port": "admin" }));
    assert_eq!(
        container["readinessProbe"]["httpGet"],
        json!({ "path": "/readyz", "port": "admin" })
    );
    let rules = &objects["NetworkPolicy"]["spec"]["ingress"];
    let monitoring = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } });
    assert_eq!(rules, &json!([{ "from": [monitoring], "ports": [{ "port": "admin" }] }]));
}

#[test]
fn what_kubernetes_mounts_is_a_configuration_that_the_program_takes() {
    let chart = chart("groupcast", "");
    let pod = &chart["objects"]["Deployment"]["spec"]["template"]["spec"];
    let text = chart["objects"]["ConfigMap"]["data"]["groupcast.toml"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut written = text.to_owned();
    // The secrets are files that the cluster mounts.
    for (number, file) in text
        .lines()
        .filter_map(|line| line.split_once("_file = \""))
        .map(|(_, file)| file.trim_end_matches('"'))
        .enumerate()
    {
        let mount = pod["containers"][0]["volumeMounts"][1]["mountPath"].as_str().unwrap();
        assert!(file.starts_with(mount), "{file} is not mounted");
        let here = folder.path().join(number.to_string());
        let secret = match file {
            _ if file.ends_with("broker_url") => "amqp://user:password@host:5672/%2f",
            _ if file.ends_with("state_url") => "redis://:password@host:6379/0",
            _ => "secret",
        };
        fs::write(&here, secret).unwrap();
        written = written.replace(file, here.to_str().unwrap());
    }
    let file = ConfigFile { path: "groupcast.toml".into(), text: written };
    let variables = pod["containers"][0]["env"].as_array().unwrap().iter();
    let environment = variables
        .map(|variable| ["name", "value"].map(|part| variable[part].as_str().unwrap().into()));
    let config = Config::read(Some(&file), environment.map(Into::into))
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(config.apps.contains_key("default"));
    let port = pod["containers"][0]["ports"][0]["containerPort"].as_u64().unwrap();
    assert_eq!(config.admin.listen, format!("0.0.0.0:{port}").parse().unwrap());
}

#[test]
fn each_value_of_the_chart_changes_what_it_names() {
    let changed = |values: &str| chart("orders", values)["objects"].take();
    let usual = changed("");
    let pods = "/Deployment/spec/template/spec";
    for (values, place, value) in [
        (
            "image: registry.example/groupcast:1.2.3",
            "/containers/0/image",
            json!("registry.example/groupcast:1.2.3"),
        ),
        ("imagePullSecrets: [registry]", "/imagePullSecrets", json!([{ "name": "registry" }])),
        ("secret: other", "/volumes/1/secret/secretName", json!("other")),
        (
            "resources: { limits: { memory: 2Gi } }",
            "/containers/0/resources/limits/memory",
            json!("2Gi"),
        ),
    ] {
        let place = format!("{pods}{place}");
        assert_ne!(usual.pointer(&place), Some(&value));
        assert_eq!(changed(values).pointer(&place), Some(&value), "{values}");
    }
    assert_eq!(changed("replicas: 1")["Deployment"]["spec"]["replicas"], 1);
    let policy = changed("monitoringNamespace: watch")["NetworkPolicy"].to_string();
    assert!(policy.contains(r#"{"kubernetes.io/metadata.name":"watch"}"#), "{policy}");
    assert!(changed("monitoringNamespace: \"\"").get("NetworkPolicy").is_none());
    // Two releases share only the Secret.
    for (kind, object) in usual.as_object().unwrap() {
        assert_eq!(object["metadata"]["name"], "orders", "{kind}");
    }
    assert_eq!(usual.pointer(&format!("{pods}/volumes/0/configMap/name")), Some(&json!("orders")));

    let other = changed("config: |\n  [broker]\n\n  [log]\n  format = \"text\"\n");
    assert_eq!(
        other["ConfigMap"]["data"]["groupcast.toml"],
        "[broker]\n\n[log]\nformat = \"text\"\n"
    );
    let checksum = "/Deployment/spec/template/metadata/annotations/checksum~1config";
    assert!(
        usual.pointer(checksum).unwrap().is_string()
            && usual.pointer(checksum) != other.pointer(checksum)
    );

    for refused in ["replica: 3", "replicas: two", "config: \"\"", "secret: null"] {
        let chart = chart("orders", refused);
        let told = chart["refusal"].as_str().unwrap_or_else(|| panic!("{refused} is taken"));
        assert!(
            told.contains(refused.split_once(':').unwrap().0) && chart["faults"] != json!([]),
            "{told}"
        );
    }
}

#[test]
fn the_chart_is_of_this_version() {
    let chart = fs::read_to_string("deploy/helm/Chart.yaml").unwrap();
    for name in ["version", "appVersion"] {
        let line = format!("{name}: {}", env!("CARGO_PKG_VERSION"));
        assert!(chart.lines().any(|written| written == line), "{line}");
    }
}
