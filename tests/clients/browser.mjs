// The same in a browser: `node browser.mjs MODULES FOLDERS NAME CHROMIUM DEVICE` prints JSON; DEVICE is wasm or webgpu.
// Files come from a server of this machine alone. Its pages are isolated, so that threads may share memory.
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const [modules, folders, name, executablePath, device] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)('playwright-core');
const own = fileURLToPath(new URL('.', import.meta.url));
const roots = { modules: join(modules, 'node_modules'), models: folders, own };
const types = {
  '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json',
};
const packages = {
  '@huggingface/transformers': '/modules/@huggingface/transformers/dist/transformers.web.js',
  'onnxruntime-web/webgpu': '/modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs',
  'onnxruntime-common': '/modules/onnxruntime-common/dist/esm/index.js',
};
const page = `<!doctype html><script type="importmap">${JSON.stringify({ imports: packages })}</script>`;
const isolated = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };

const server = createServer(async ({ url }, answer) => {
  const [, root, ...rest] = normalize(decodeURIComponent(url)).split('/');
  try {
    const content = root ? await readFile(join(roots[root], ...rest)) : page;
    const type = root ? (types[extname(url)] ?? 'application/octet-stream') : 'text/html';
    answer.writeHead(200, { 'Content-Type': type, ...isolated });
    answer.end(content);
  } catch {
    answer.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const args = device === 'webgpu' ? ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] : [];
const browser = await chromium.launch({ executablePath, args, chromiumSandbox: process.getuid?.() !== 0 });
try {
  const tab = await browser.newPage();
  await tab.goto(`http://127.0.0.1:${server.address().port}/`);
  const tokens = await tab.evaluate(async ([name, device]) => {
    if (device === 'webgpu' && !(await navigator.gpu?.requestAdapter())) return { none: 'no adapter' };
    const transformers = await import('@huggingface/transformers');
    const runtime = '/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify';
    transformers.env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
    const { generated } = await import('/own/generated.mjs');
    return generated(transformers, '/models/', name, { device });
  }, [name, device]);
  console.log(JSON.stringify(tokens));
} finally {
  await browser.close();
  server.close();
}
