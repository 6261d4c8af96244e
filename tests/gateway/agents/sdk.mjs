// An agent that uses OpenAI's client for Node as its users do: a tool, then a streamed answer.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.OPENAI_MODEL;
const messages = [{ role: "user", content: readFileSync(0, "utf8") }];
const parameters = {
  type: "object",
  properties: { a: { type: "number" }, b: { type: "number" } },
};
const tools = [
  { type: "function", function: { name: "add", description: "Add two numbers.", parameters } },
];

const first = (await client.chat.completions.create({ model, messages, tools })).choices[0];
messages.push(first.message);
for (const call of first.message.tool_calls ?? []) {
  const { a, b } = JSON.parse(call.function.arguments);
  messages.push({ role: "tool", tool_call_id: call.id, content: String(a + b) });
}
if (!first.message.tool_calls) messages.push({ role: "user", content: "Are you sure?" });
let text = "";
const stream = await client.chat.completions.create({ model, messages, tools, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log(text);
