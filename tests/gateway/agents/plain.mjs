// An agent without any dependency: two turns, the second one streamed. Prints its answer last.
import { readFileSync } from "node:fs";

const task = readFileSync(0, "utf8");
const url = `${process.env.OPENAI_BASE_URL}/chat/completions`;
const headers = {
  "Content-Type": "application/json",
  Authorization: `Bearer ${process.env.OPENAI_API_KEY}`,
};
const messages = [{ role: "user", content: task }];

async function ask(stream) {
  const body = JSON.stringify({ model: process.env.OPENAI_MODEL, messages, stream });
  const answer = await fetch(url, { method: "POST", headers, body });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  if (!stream) return (await answer.json()).choices[0].message.content;
  const events = (await answer.text()).split("\n\n").filter((one) => one.startsWith("data: {"));
  const deltas = events.map((one) => JSON.parse(one.slice(6)).choices[0].delta);
  return deltas.map((one) => one.content ?? "").join("");
}

messages.push({ role: "assistant", content: await ask(false) });
messages.push({ role: "user", content: "Are you sure?" });
console.log(await ask(true));
