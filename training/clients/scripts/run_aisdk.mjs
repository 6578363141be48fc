// Vercel's AI SDK: its provider for OpenAI-compatible servers, and OpenAI's provider in chat mode.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { readFileSync } from "node:fs";

const [url, picture] = process.argv.slice(2);
const apiKey = "not-needed-on-loopback";
const compatible = createOpenAICompatible({ name: "vlroute", baseURL: url, apiKey, includeUsage: true });
const openai = createOpenAI({ baseURL: url, apiKey });
const providers = [(name) => compatible(name), (name) => openai.chat(name)];
const prompt = "Read the text.";
const common = { maxRetries: 0 };

async function both(cell) {
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
  plain: () => both(plain),
  stream: () => both(async (model) => {
    let text = "";
    const onError = ({ error }) => { throw error; };
    for await (const piece of streamText({ ...common, model: model("instruct"), prompt, temperature: 0, onError }).textStream) text += piece;
    if (text !== (await plain(model))) throw new Error(`the stream says ${text}`);
    return text;
  }),
  picture: () => both(async (model) => {
    const content = [{ type: "text", text: prompt }, { type: "image", image: readFileSync(picture) }];
    return (await generateText({ ...common, model: model("auto"), messages: [{ role: "user", content }] })).text;
  }),
  turns: () => both(async (model) => {
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
