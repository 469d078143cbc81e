// Greedy tokens of an ONNX folder in Transformers.js: `node transformers_js.mjs MODULES FOLDERS NAME` prints JSON.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { generated } from './generated.mjs';

const [modules, folders, name] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve('@huggingface/transformers');
console.log(JSON.stringify(await generated(await import(pathToFileURL(found)), `${folders}/`, name, {})));
