//! From connection to result: a worker with one handler, and a task for it.

use taskmaster_client::{Client, Task, Worker};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect("127.0.0.1:7700").await?;

    let worker = Worker::builder(&client)
        .queue("greetings")
        .handler("greet", |task| async move { Ok(format!("Hello, {}!", task.text()?)) })
        .start()
        .await?;

    let task = client.submit(Task::new("greet").queue("greetings").payload("world")).await?;
    println!("{}", client.result(task.id).await?.text()?);

    Ok(worker.shutdown().await?)
}
