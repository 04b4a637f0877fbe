// Vercel's AI SDK: one act a line on stdin, what the SDK saw of it a line on stdout.
import { createInterface } from "node:readline";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

// The model of an act. OpenAI's provider speaks responses unless told otherwise, and always asks for
// usage; the compatible one speaks chat completions and asks when told to.
function modelOf(act) {
  const common = { baseURL: act.url, apiKey: act.key, headers: { "x-farebox-session": act.session } };
  if (act.act === "compatible")
    return createOpenAICompatible({ ...common, name: "farebox", includeUsage: act.usage })(act.model);
  const openai = createOpenAI(common);
  return act.act === "chat" ? openai.chat(act.model) : openai(act.model);
}

async function conversation(act) {
  const answer = streamText({
    model: modelOf(act),
    prompt: act.question,
    tools: {
      [act.tool]: tool({
        inputSchema: z.object({ city: z.string(), unit: z.string() }),
        execute: async () => act.result,
      }),
    },
    stopWhen: stepCountIs(3),
    providerOptions: { openai: { user: act.user }, farebox: { user: act.user } },
    includeRawChunks: true,
    onError: () => {},
  });
  const chunks = [];
  for await (const part of answer.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "start-step") chunks.push(0);
    if (part.type === "raw") chunks[chunks.length - 1]++;
  }
  const steps = await answer.steps;
  return {
    turns: steps.map((step, turn) => ({
      text: step.text,
      tool_calls: step.toolCalls.map((call) => ({ name: call.toolName, arguments: call.input })),
      usage:
        step.usage.inputTokens === undefined
          ? null
          : {
              input: step.usage.inputTokens,
              cached: step.usage.inputTokenDetails.cacheReadTokens,
              output: step.usage.outputTokens,
              reasoning: step.usage.outputTokenDetails.reasoningTokens,
            },
      chunks: chunks[turn],
      warnings: step.warnings,
    })),
  };
}

async function embeddings(act) {
  const openai = createOpenAI({ baseURL: act.url, apiKey: act.key, headers: { "x-farebox-session": act.session } });
  const answer = await embed({
    model: openai.embedding(act.model),
    value: act.question,
    providerOptions: { openai: { user: act.user } },
  });
  return { vector: answer.embedding, tokens: answer.usage.tokens };
}

for await (const line of createInterface({ input: process.stdin })) {
  const act = JSON.parse(line);
  const saw = await (act.act === "embeddings" ? embeddings : conversation)(act).catch((error) => ({
    error: [APICallError.isInstance(error) ? "APICallError" : error.name],
    status: error.statusCode,
    message: String(error.message),
  }));
  console.log(JSON.stringify(saw));
}
