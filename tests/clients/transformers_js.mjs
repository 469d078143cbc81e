// Greedy tokens of an ONNX folder in Transformers.js: `node transformers_js.mjs MODULES FOLDERS NAME` prints JSON.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, folders, name] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve('@huggingface/transformers');
const { env, AutoTokenizer, AutoModelForCausalLM } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = `${folders}/`;
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: 'fp32' });
tokenizer.padding_side = 'left';
const told = { max_new_tokens: 32, do_sample: false };
const rows = (tokens) => tokens.tolist().map((row) => row.map(Number));
const one = await model.generate({ ...tokenizer('And God said unto Moses'), ...told });
const texts = ['And God said', 'In the beginning God created the heaven and the earth'];
const two = await model.generate({ ...tokenizer(texts, { padding: true }), ...told });
console.log(JSON.stringify({ one: rows(one), two: rows(two) }));
