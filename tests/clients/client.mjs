// A KFP/1 client in another language, written from schemas/kfp1/ alone, without packages.
// node client.mjs SOCKET TOPIC COUNT: prints one JSON array a message, ends after COUNT ticks.
import net from "node:net";

const str = (text) => [0xd9, Buffer.byteLength(text), ...Buffer.from(text)]; // up to 255 bytes
const list = (...items) => [0x90 | items.length, ...items.flat()];
const map = (entries) => [0x80 | entries.length, ...entries.flat(2)];

function decode(body) {
  let at = 0;
  const take = (size) => body.subarray(at, (at += size));
  const uint = (size) => Number(BigInt("0x" + take(size).toString("hex")));
  const int = (size) => Number(BigInt.asIntN(size * 8, BigInt("0x" + take(size).toString("hex"))));
  const items = (count) => Array.from({ length: count }, value);
  const pairs = (count) => Object.fromEntries(Array.from({ length: count }, () => [value(), value()]));
  function value() {
    const tag = take(1)[0];
    if (tag < 0x80) return tag;
    if (tag < 0x90) return pairs(tag & 15);
    if (tag < 0xa0) return items(tag & 15);
    if (tag < 0xc0) return take(tag & 31).toString();
    if (tag >= 0xe0) return tag - 256;
    if (tag === 0xc0) return null;
    if (tag === 0xc2 || tag === 0xc3) return tag === 0xc3;
    if (tag === 0xcb) return take(8).readDoubleBE();
    if (tag >= 0xcc && tag <= 0xcf) return uint(1 << (tag - 0xcc));
    if (tag >= 0xd0 && tag <= 0xd3) return int(1 << (tag - 0xd0));
    if (tag >= 0xd9 && tag <= 0xdb) return take(uint(1 << (tag - 0xd9))).toString();
    if (tag >= 0xdc && tag <= 0xdd) return items(uint(2 << (tag - 0xdc)));
    if (tag >= 0xde && tag <= 0xdf) return pairs(uint(2 << (tag - 0xde)));
    throw new Error(`no such msgpack here: ${tag}`);
  }
  return value();
}

const [path, topic, count] = process.argv.slice(2);
const socket = net.connect(path);
const send = (...message) => {
  const [body, head] = [Buffer.from(list(...message)), Buffer.alloc(4)];
  head.writeUInt32BE(body.length);
  socket.write(Buffer.concat([head, body]));
};
let [pending, ticks] = [Buffer.alloc(0), 0];
send([1], [1], map([[str("proto"), list([1], [1])], [str("client"), str("node/1")]]));
socket.on("data", (data) => {
  for (pending = Buffer.concat([pending, data]); pending.length >= 4; ) {
    const end = 4 + pending.readUInt32BE();
    if (pending.length < end) break;
    const message = decode(pending.subarray(4, end));
    pending = pending.subarray(end);
    console.log(JSON.stringify(message));
    if (message[0] === 16) send([2], [2], map([[str("subs"), list(map([[str("topic"), str(topic)]]))]]));
    if (message[0] === 20 && ++ticks >= Number(count)) socket.end();
  }
});
