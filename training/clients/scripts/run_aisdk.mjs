// Vercel's AI SDK: its provider for OpenAI-compatible servers, and OpenAI's provider for chats and for responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { readFileSync } from "node:fs";

const [url, picture] = process.argv.slice(2);
const apiKey = "not-needed-on-loopback";
const compatible = createOpenAICompatible({
  name: "vlroute", baseURL: url, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: url, apiKey });
const providers = [(name) => compatible(name), (name) => openai.chat(name), (name) => openai.responses(name)];
const prompt = "Read the text.";
const common = { maxRetries: 0 };

async function each(cell) {
  const output = [];
  for (const model of providers) output.push(await cell(model));
  if (output.some((one) => !one)) throw new Error(`empty: ${JSON.stringify(output)}`);
  return output[0];
}

const plain = (model) => generateText({ ...common, model: model("instruct"), prompt, temperature: 0, maxOutputTokens: 64 }).then((r) => r.text);

async function refused(model, name, providerOptions) {
  try {
    await generateText({ ...common, model: model(name), prompt, providerOptions });
  } catch (error) {
    return error;
  }
  throw new Error(`${name} was not refused`);
}

const cells = {
  plain: () => each(plain),
  stream: () => each(async (model) => {
    let text = "";
    const onError = ({ error }) => { throw error; };
    for await (const piece of streamText({ ...common, model: model("instruct"), prompt, temperature: 0, onError }).textStream) text += piece;
    if (text !== (await plain(model))) throw new Error(`the stream says ${text}`);
    return text;
  }),
  picture: () => each(async (model) => {
    const content = [{ type: "text", text: prompt }, { type: "image", image: readFileSync(picture) }];
    return (await generateText({ ...common, model: model("auto"), messages: [{ role: "user", content }] })).text;
  }),
  turns: () => each(async (model) => {
    const messages = [];
    let text = "";
    for (const [name, content] of [["instruct", "How many circles are there?"], ["thinking", prompt], ["auto", "Add 2 and 3."]]) {
      messages.push({ role: "user", content });
      const output = await generateText({ ...common, model: model(name), system: "Be brief.", messages });
      messages.push(...output.response.messages);
      text = output.text;
    }
    return text;
  }),
  reasoning: async () => {
    const model = compatible("auto");
    const output = await generateText({ ...common, model, prompt, providerOptions: { vlroute: { reasoningEffort: "low" } } });
    const off = await generateText({ ...common, model, prompt, providerOptions: { vlroute: { enable_thinking: false } } });
    if (off.reasoningText) throw new Error("reasoned with enable_thinking: false");
    return output.reasoningText;
  },
  tools: () => each(async (model) => {
    const inputSchema = jsonSchema({
      type: "object", properties: { button: { type: "string", maxLength: 8 } }, required: ["button"], additionalProperties: false,
    });
    const tools = { tap: tool({ description: "Tap a button of this screen.", inputSchema }) };
    const messages = [{ role: "user", content: prompt }];
    const first = await generateText({ ...common, model: model("instruct"), messages, tools, toolChoice: "required" });
    const call = first.toolCalls[0];
    if (call.toolName !== "tap" || typeof call.input.button !== "string") throw new Error(JSON.stringify(call));
    const results = first.toolCalls.map(({ toolCallId, toolName }) => (
      { type: "tool-result", toolCallId, toolName, output: { type: "text", value: "Done." } }));
    messages.push(...first.response.messages, { role: "tool", content: results });
    await generateText({ ...common, model: model("auto"), messages, tools });
    return `tap ${call.input.button}`;
  }),
  structured: () => each(async (model) => {
    const schema = jsonSchema({
      type: "object", required: ["sides", "color"], additionalProperties: false,
      properties: { sides: { type: "integer", minimum: 0, maximum: 9 }, color: { enum: ["red", "green"] } },
    });
    const { output } = await generateText({ ...common, model: model("thinking"), prompt, output: Output.object({ schema }) });
    if (!["red", "green"].includes(output.color)) throw new Error(JSON.stringify(output));
    return JSON.stringify(output);
  }),
  errors: async () => {
    const unknown = await refused(compatible, "no-such-model");
    const field = await refused(compatible, "auto", { vlroute: { never_heard_of: 1 } });
    if (unknown.statusCode !== 404 || field.statusCode !== 400) throw new Error(`${unknown.statusCode}, ${field.statusCode}`);
    if (!field.message.includes("never_heard_of")) throw new Error(field.message);
    return `${unknown.name} 404, ${field.name} 400`;
  },
};

const own = JSON.parse(readFileSync(new URL("package.json", import.meta.resolve("ai").replace(/dist\/.*/, ""))));
console.log(JSON.stringify({ version: own.version }));
for (const [cell, run] of Object.entries(cells)) {
  try {
    const output = await run();
    console.log(JSON.stringify({ cell, ok: Boolean(output), output: String(output).slice(0, 300) }));
  } catch (error) {
    console.error(error);
    console.log(JSON.stringify({ cell, ok: false, output: String(error).slice(0, 300) }));
  }
}
