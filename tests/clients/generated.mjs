// Greedy tokens of a text, and of two that are padded on the left, by Transformers.js wherever it runs.
export async function generated({ env, AutoTokenizer, AutoModelForCausalLM }, folders, name, options) {
  const local = { allowRemoteModels: false, allowLocalModels: true, useBrowserCache: false, localModelPath: folders };
  Object.assign(env, local);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, options);
  tokenizer.padding_side = 'left';
  const told = { max_new_tokens: 32, do_sample: false };
  const rows = (tokens) => tokens.tolist().map((row) => row.map(Number));
  const one = await model.generate({ ...tokenizer('And God said unto Moses'), ...told });
  const texts = ['And God said', 'In the beginning God created the heaven and the earth'];
  const two = await model.generate({ ...tokenizer(texts, { padding: true }), ...told });
  return { one: rows(one), two: rows(two) };
}
