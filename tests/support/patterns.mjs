// Finds the patterns of label maps with the page's own code. Standard input: JSON {module, facts, maps: [{width, height,
// ids, instances}]}; standard output: JSON, a list of {share, tables: {name: [numbers]}}.

import {text} from "node:stream/consumers";

const {module, facts, maps} = JSON.parse(await text(process.stdin));
const {extractPatterns} = await import(module);
const found = maps.map((map) => {
  const {latent, levels, share} = extractPatterns(facts, map);
  const tables = latent ? {latent: [...latent]} : {};
  for (const {stride, codes, patterns, index} of levels) {
    Object.assign(tables, {
      [`codes_${stride}`]: [...codes], [`patterns_${stride}`]: [...patterns], [`index_${stride}`]: [...index],
    });
  }
  return {share, tables};
});
process.stdout.write(JSON.stringify(found));
