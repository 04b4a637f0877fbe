// OpenAI's client for JavaScript: one act a line on stdin, what the client saw of it a line on stdout.
import { createInterface } from "node:readline";
import OpenAI from "openai";

const parameters = {
  type: "object",
  properties: { city: { type: "string" }, unit: { type: "string" } },
};

async function chat(client, act) {
  const messages = [{ role: "user", content: act.question }];
  const turns = [];
  for (let turn = 0; turn < 2; turn++) {
    const stream = client.chat.completions.stream({
      model: act.model,
      messages,
      user: act.user,
      tools: [{ type: "function", function: { name: act.tool, parameters } }],
      ...(act.usage ? { stream_options: { include_usage: true } } : {}),
    });
    let chunks = 0;
    for await (const _ of stream) chunks++;
    const answer = await stream.finalChatCompletion();
    const said = answer.choices[0].message;
    const usage = answer.usage;
    turns.push({
      text: said.content,
      tool_calls: (said.tool_calls ?? []).map((call) => ({
        name: call.function.name,
        arguments: JSON.parse(call.function.arguments),
      })),
      usage: usage && {
        input: usage.prompt_tokens,
        cached: usage.prompt_tokens_details.cached_tokens,
        output: usage.completion_tokens,
        reasoning: usage.completion_tokens_details.reasoning_tokens,
      },
      chunks,
    });
    messages.push(said);
    for (const call of said.tool_calls ?? [])
      messages.push({ role: "tool", tool_call_id: call.id, content: act.result });
  }
  return { turns };
}

async function responses(client, act) {
  const input = [{ role: "user", content: act.question }];
  const turns = [];
  for (let turn = 0; turn < 2; turn++) {
    const stream = client.responses.stream({
      model: act.model,
      input,
      user: act.user,
      tools: [{ type: "function", name: act.tool, parameters, strict: false }],
    });
    let text = "";
    for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
    const answer = await stream.finalResponse();
    const calls = answer.output.filter((item) => item.type === "function_call");
    turns.push({
      text,
      tool_calls: calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) })),
      usage: {
        input: answer.usage.input_tokens,
        cached: answer.usage.input_tokens_details.cached_tokens,
        output: answer.usage.output_tokens,
        reasoning: answer.usage.output_tokens_details.reasoning_tokens,
      },
    });
    input.push(...answer.output);
    for (const call of calls)
      input.push({ type: "function_call_output", call_id: call.call_id, output: act.result });
  }
  return { turns };
}

async function embeddings(client, act) {
  const answer = await client.embeddings.create({ model: act.model, input: act.question, user: act.user });
  return { vector: answer.data[0].embedding, tokens: answer.usage.prompt_tokens };
}

const acts = { chat, responses, embeddings };

for await (const line of createInterface({ input: process.stdin })) {
  const act = JSON.parse(line);
  const client = new OpenAI({
    baseURL: act.url,
    apiKey: act.key,
    defaultHeaders: { "x-farebox-session": act.session },
  });
  const saw = await acts[act.act](client, act).catch((error) => ({
    error: [error.constructor.name],
    status: error.status,
    message: String(error.message),
  }));
  console.log(JSON.stringify(saw));
}
