// Stores a file and reads it back: node client.js ADDRESS CA_FILE NAME
//
// The token is in the variable TASKWORKER_TOKEN. CA_FILE has the certificate of the server's authority, which
// `taskworker authority show --certificates ca.pem` writes. Without TLS (a server of this machine), give '-'.

import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import grpc from '@grpc/grpc-js'
import loader from '@grpc/proto-loader'

const [address, caFile, name] = process.argv.slice(2)
const protos = process.env.TASKWORKER_PROTOS ?? new URL('../../protos', import.meta.url).pathname
const definition = loader.loadSync(`${protos}/taskworker.proto`, { keepCase: true })
const { FileService } = grpc.loadPackageDefinition(definition).taskworker

const metadata = new grpc.Metadata()
metadata.set('authorization', `Bearer ${process.env.TASKWORKER_TOKEN}`)

// Every server with an authority of its own has a certificate for this name, wherever it listens.
const options = { 'grpc.ssl_target_name_override': 'pool.taskworker.internal' }
const files =
  caFile === '-'
    ? new FileService(address, grpc.credentials.createInsecure())
    : new FileService(address, grpc.credentials.createSsl(readFileSync(caFile)), options)
const push = promisify(files.Push.bind(files))
const get = promisify(files.Get.bind(files))

try {
  // The user is the one that the token belongs to.
  const { file_id } = await push({ filename: name, file_data: Buffer.from('hello from Node.js\n') }, metadata)
  const { file_data } = await get({ file_id }, metadata)
  process.stdout.write(`${file_id}: ${file_data}`)
} catch (error) {
  console.error(`${grpc.status[error.code]}: ${error.details}`)
  process.exitCode = 1
} finally {
  files.close()
}
