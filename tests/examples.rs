//! The examples for producers run unchanged, and the messages match the schemas.

use std::{fs, os::unix::fs::symlink, path::Path, process::Stdio, time::Duration};

use groupcast::settle::result::Status;
use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Map, Value, json};
use tokio::process::Command;

use crate::support::{
    broker::Broker,
    scene::{Scene, job},
};

/// The first block of code below a heading, changed to this broker and app.
fn example(heading: &str, scene: &Scene, broker: &Broker) -> String {
    let document = fs::read_to_string("docs/producers.md").unwrap();
    let (_, section) =
        document.split_once(&format!("\n## {heading}\n")).expect("there is an example");
    let (_, block) = section.split_once("```").expect("it has code");
    let (code, _) = block.split_once("\n```").expect("it ends");
    let (_, code) = code.split_once('\n').expect("it has lines");
    assert!(code.matches("5672").count() == 1 && code.contains("groupcast.default.jobs"));
    // The tests' broker has another port than the example's.
    let code = code.replace("5672", &broker.address().port().to_string());
    code.replace("groupcast.default.", &format!("groupcast.{}.", scene.app))
}

async fn run(mut command: Command) -> String {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), running)
        .await
        .expect("it ends")
        .expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test]
async fn the_python_example_sends_a_job_and_prints_its_result() {
    let scene = Scene::start().await;
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-c").arg(example("Python", &scene, Broker::shared().await));
    assert_eq!(run(python).await.trim(), "sent []");
    assert_eq!(scene.notified("@TGS#2C5SZEAEF"), ["alice", "bob"]);
}

#[tokio::test]
async fn the_node_example_sends_a_job_and_prints_its_result() {
    let scene = Scene::start().await;
    // tests/tools.sh puts the package there.
    let folder = Path::new("target/node");
    assert!(
        folder.join("node_modules/amqplib").exists(),
        "amqplib is there; tests/run.sh installs it"
    );
    let queue = format!("orders.results.{}", scene.app);
    let code = example("Node", &scene, Broker::shared().await).replace("orders.results", &queue);
    // The unchanged example listens for ever.
    let ending = "  channel.ack(message);\n";
    assert!(code.contains(ending));
    let code =
        code.replace(ending, &format!("{ending}  setTimeout(() => connection.close(), 100);\n"));
    let file = folder.join(format!("{}.mjs", scene.app));
    fs::write(&file, code).unwrap();
    let mut node = Command::new("node");
    node.arg(&file);
    let printed = run(node).await;
    fs::remove_file(&file).unwrap();
    assert_eq!(printed.trim(), "order-43 sent []");
    assert_eq!(scene.notified("@TGS#2C5SZEAEF"), ["alice", "bob"]);
}

/// Runs an example that publishes a job and ends, as `file` in a folder where `vendor` is
/// `library`. The result is in the queue that the example names.
async fn sends_its_job(heading: &str, file: &str, library: &str, mut program: Command) {
    let mut scene = Scene::start().await;
    let code = example(heading, &scene, Broker::shared().await);
    assert!(code.contains("orders.results"));
    let code = code.replace("orders.results", &scene.producer.reply_queue);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(file), &code).unwrap();
    symlink(library, folder.path().join("vendor")).unwrap();
    program.arg(file).current_dir(folder.path());
    assert_eq!(run(program).await, "");
    let result = scene.producer.result().await;
    assert_eq!(result.status, Status::Sent);
    assert!(code.contains(&result.job_id), "{} is not the example's id", result.job_id);
    assert_eq!(scene.notified("@TGS#2C5SZEAEF"), ["alice", "bob"]);
}

#[tokio::test]
async fn the_php_example_sends_a_job() {
    sends_its_job("PHP", "publish.php", "/usr/share/php/PhpAmqpLib", Command::new("php")).await;
}

#[tokio::test]
#[ignore = "tests/examples.sh gets Go and runs it"]
async fn the_go_example_sends_a_job() {
    let library = "/usr/share/gocode/src/github.com/rabbitmq/amqp091-go";
    let mut go = Command::new("go");
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/go");
    go.envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
        .env("GOCACHE", cache)
        .arg("run");
    sends_its_job("Go", "publish.go", library, go).await;
}

#[tokio::test]
#[ignore = "tests/examples.sh gets Java and runs it"]
async fn the_java_example_sends_a_job() {
    let [client, log] = ["/usr/share/java/amqp-client.jar", "/usr/share/java/slf4j-api.jar"];
    let mut java = Command::new("java");
    java.args(["-cp", &format!("{client}:{log}")]);
    sends_its_job("Java", "Publish.java", client, java).await;
}

fn asyncapi() -> Value {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_groupcast"))
        .args(["schema", "--asyncapi"])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_asyncapi_document_in_docs_is_the_one_that_the_program_prints() {
    let path = "docs/asyncapi.json";
    let printed = format!("{:#}\n", asyncapi());
    #[expect(clippy::disallowed_methods, reason = "of the test, not of the program")]
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    if update {
        fs::write(path, &printed).unwrap();
    }
    assert_eq!(
        fs::read_to_string(path).unwrap_or_default(),
        printed,
        "UPDATE_DOCUMENTS=1 tests/run.sh --test promises examples writes it"
    );
}

/// Validates a message with the schema of one of the document's messages.
fn check(document: &Value, message: &str, payload: &Value, properties: &BasicProperties) {
    let headers: Map<String, Value> = properties
        .headers()
        .iter()
        .flat_map(|headers| headers.inner())
        .filter(|(name, _)| name.as_str().starts_with("groupcast-"))
        .map(|(name, value)| {
            let value = match value {
                AMQPValue::LongString(text) => json!(text.to_string()),
                AMQPValue::LongLongInt(number) => json!(number),
                other => panic!("{name}: {other:?}"),
            };
            (name.as_str().to_owned(), value)
        })
        .collect();
    for (part, value) in [("payload", payload), ("headers", &Value::Object(headers))] {
        let mut schema = document["components"]["messages"][message][part].clone();
        schema["components"] = document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> =
            validator.iter_errors(value).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{message} {part}: {faults:?} in {value}");
        assert!(
            !validator.is_valid(&json!([])) || message == "letter",
            "{message} {part} takes anything"
        );
    }
}

#[tokio::test]
async fn real_jobs_results_and_dead_letters_are_what_the_document_says() {
    let mut scene = Scene::start().await;
    let document = asyncapi();
    for (body, status) in [
        (job("g", 3), Status::Sent),
        (job("unknown-group", 3), Status::Failed),
        (json!({ "GroupId": 1 }), Status::Rejected),
    ] {
        if status != Status::Rejected {
            check(&document, "job", &body, &scene.producer.properties());
        }
        scene.publish(&body).await;
        let reply = scene.producer.reply().await;
        let result: Value = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(result["status"], status.as_str());
        check(&document, "result", &result, &reply.properties);
        if status != Status::Sent {
            let letter = scene.dead_letter().await;
            check(
                &document,
                "letter",
                &serde_json::from_slice(&letter.data).unwrap(),
                &letter.properties,
            );
        }
    }
}
