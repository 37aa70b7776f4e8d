// Run by `portcullis policy build` in the policy's folder: node … SOURCE CONTRACT OUTPUT.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [sourcePath, witPath, output] = process.argv.slice(1);
// A policy has no clock, no randomness, no network and no files: with any of these it would ask for more than it may.
const disableFeatures = ["random", "stdio", "clocks", "http", "fetch-event"];
const { component } = await componentize({ sourcePath, witPath, worldName: "policy", disableFeatures });
await writeFile(output, component);
