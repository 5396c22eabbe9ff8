// Opens an ONNX model with Netron's own reader and prints what its viewer would show, as JSON.
//
// usage: node netron_reader.mjs NETRON_FOLDER MODEL
//
// NETRON_FOLDER holds Netron's JavaScript. The host below stands in for the browser: it finds
// modules, assets and the model's data file.

import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';

const [netron, model] = process.argv.slice(2);

const load = (name) => import(pathToFileURL(path.join(netron, `${name}.js`)));
const streams = await load('node');
const view = await load('view');

const open = (file) => {
    const stat = fs.statSync(file);
    return new streams.FileStream(file, 0, stat.size, stat.mtimeMs);
};

const errors = [];
const host = {
    type: 'Test',
    environment: () => undefined,
    require: (id) => load(id),
    asset: async (name) => fs.readFileSync(path.join(netron, name), 'utf-8'),
    event: () => {},
    exception: (error) => errors.push(error.message)
};

const context = {
    identifier: path.basename(model),
    stream: open(model),
    entries: new Map(),
    tags: async () => new Map(),
    require: host.require,
    asset: host.asset,
    fetch: async (name) => open(path.join(path.dirname(model), name)),
    error: (error) => errors.push(error.message)
};

const shown = (value) => {
    if (typeof value === 'bigint') {
        return Number(value);
    }
    return Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value, shown) : value;
};

const tensor = async (value) => {
    const { initializer } = value;
    if (!initializer) {
        return { name: value.name };
    }
    if (!initializer.peek()) {
        await initializer.read();
    }
    const data = initializer.values;
    return { name: value.name, type: `${initializer.type}`, bytes: data ? data.byteLength ?? data.length : 0 };
};

const argument = async (entry) => ({
    name: entry.name,
    tensors: await Promise.all(entry.value.map(tensor))
});

const notes = (place) => Object.fromEntries(place.metadata.map((m) => [m.name, m.value]));

const describe = async (node) => ({
    name: node.name,
    description: node.description,
    type: node.type.name,
    module: node.type.module,
    inputs: await Promise.all(node.inputs.map(argument)),
    outputs: await Promise.all(node.outputs.map(argument)),
    attributes: Object.fromEntries(node.attributes.map((a) => [a.name, shown(a.value)])),
    metadata: notes(node),
    body: (node.type.nodes || []).map((inner) => inner.type.name)
});

const opened = await new view.ModelFactoryService(host).open(context);
const [graph] = opened.modules;
process.stdout.write(JSON.stringify({
    format: opened.format,
    producer: opened.producer,
    description: opened.description,
    metadata: notes(opened),
    imports: opened.imports,
    errors,
    inputs: graph.inputs.map((entry) => entry.name),
    functions: opened.functions.map((f) => ({
        name: f.name,
        module: f.module,
        description: f.description,
        inputs: f.inputs.map((entry) => entry.name),
        nodes: f.nodes.length
    })),
    nodes: await Promise.all(graph.nodes.map(describe))
}));
