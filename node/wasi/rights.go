package wasi

// Rights (typenames.witx, "rights").
const (
	rightDatasync         = 1 << 0
	rightRead             = 1 << 1
	rightSeek             = 1 << 2
	rightSetFlags         = 1 << 3
	rightSync             = 1 << 4
	rightTell             = 1 << 5
	rightWrite            = 1 << 6
	rightAdvise           = 1 << 7
	rightAllocate         = 1 << 8
	rightCreateDir        = 1 << 9
	rightCreateFile       = 1 << 10
	rightLinkSource       = 1 << 11
	rightLinkTarget       = 1 << 12
	rightPathOpen         = 1 << 13
	rightReaddir          = 1 << 14
	rightReadlink         = 1 << 15
	rightRenameSource     = 1 << 16
	rightRenameTarget     = 1 << 17
	rightPathFilestatGet  = 1 << 18
	rightPathSetSize      = 1 << 19
	rightPathSetTimes     = 1 << 20
	rightFilestatGet      = 1 << 21
	rightFilestatSetSize  = 1 << 22
	rightFilestatSetTimes = 1 << 23
	rightSymlink          = 1 << 24
	rightRemoveDir        = 1 << 25
	rightUnlink           = 1 << 26
	rightPoll             = 1 << 27
)

// The most rights a descriptor of each kind has. What a directory's descriptor
// hands down to those opened through it may be any of both.
const (
	fileRights = rightDatasync | rightRead | rightSeek | rightSetFlags | rightSync | rightTell | rightWrite |
		rightAdvise | rightAllocate | rightFilestatGet | rightFilestatSetSize | rightFilestatSetTimes | rightPoll
	dirRights = rightSetFlags | rightSync | rightCreateDir | rightCreateFile | rightLinkSource | rightLinkTarget |
		rightPathOpen | rightReaddir | rightReadlink | rightRenameSource | rightRenameTarget |
		rightPathFilestatGet | rightPathSetSize | rightPathSetTimes | rightFilestatGet | rightFilestatSetTimes |
		rightSymlink | rightRemoveDir | rightUnlink | rightPoll
	// changeRights are those that let a guest change something. A read-only
	// directory is one without them. Linking is among them: a second name in a
	// writable directory would open the file for writing.
	changeRights = rightWrite | rightAllocate | rightCreateDir | rightCreateFile | rightLinkSource |
		rightLinkTarget | rightRenameSource | rightRenameTarget | rightPathSetSize | rightPathSetTimes |
		rightFilestatSetSize | rightFilestatSetTimes | rightSymlink | rightRemoveDir | rightUnlink
)

// streamRights are the most each stream has.
var streamRights = [3]uint64{
	rightRead | rightSetFlags | rightFilestatGet | rightPoll,
	rightWrite | rightSetFlags | rightFilestatGet | rightPoll,
	rightWrite | rightSetFlags | rightFilestatGet | rightPoll,
}
